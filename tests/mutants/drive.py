"""Removes one rule from a copy of the package and runs the tests that must notice."""

from __future__ import annotations

import compileall
import os
import pathlib
import py_compile
import shutil
import subprocess
import sys
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT_S = 300


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One rule, removed.

    Attributes:
        name: short, for the test's id.
        rule: what is removed, in words.
        file: the module, relative to src/holdfast.
        old, new: the text and what stands there instead; `old` occurs exactly once.
        tests: what must fail: node ids or paths, relative to the repository.
    """

    name: str
    rule: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def compiled(place: pathlib.Path) -> pathlib.Path:
    """A copy of src below `place` with its bytecode, which is checked against the source by hash: to copy again."""
    source = place / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    compileall.compile_dir(source, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return source


def mutate(mutant: Mutant | None, whole: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    """A copy of `whole` below `place` with the rule removed (or untouched, for None)."""
    source = place / "src"
    shutil.copytree(whole, source)
    if mutant is not None:
        path = source / "holdfast" / mutant.file
        text = path.read_text(encoding="utf-8")
        found = text.count(mutant.old)
        assert found == 1, f"{mutant.name}: the text occurs {found} times in {mutant.file}; adapt the mutant"
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return source


def run(
    source: pathlib.Path, tests: tuple[str, ...], place: pathlib.Path, *, hurried: bool
) -> subprocess.CompletedProcess[str]:
    """Run `tests` on the package in `source`; the repository's own tests, in a process of their own.

    `hurried`: they wait less long for what will never come.
    """
    temporary = place / "tmp"
    temporary.mkdir()
    environment = os.environ | {"PYTHONPATH": str(source), "TMPDIR": str(temporary)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    if hurried:
        environment["HOLDFAST_MUTANT"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )

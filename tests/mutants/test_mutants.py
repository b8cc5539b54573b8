"""Every rule is needed: with each one removed, a test fails.

The lists stand in `*_mutants.py` beside this file. `pytest -m mutants -k NAME` runs one.
"""

from __future__ import annotations

import importlib
import pathlib

import pytest

from tests.mutants.drive import Mutant, compiled, mutate, run

pytestmark = [pytest.mark.mutants, pytest.mark.timeout(400)]

LISTS = sorted(
    path.stem for path in pathlib.Path(__file__).parent.glob("*_mutants.py") if not path.stem.startswith("test")
)
MUTANTS: list[Mutant] = [
    mutant for name in LISTS for mutant in importlib.import_module(f"tests.mutants.{name}").MUTANTS
]
FAILED = 1  # pytest's exit status for failed tests; anything else would prove nothing


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return compiled(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_removed_rule_is_noticed(mutant: Mutant, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = run(mutate(mutant, whole, tmp_path), mutant.tests, tmp_path)
    assert done.returncode == FAILED, f"nobody noticed: {mutant.rule}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"


def test_the_same_tests_pass_with_every_rule_in_place(whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    tests = tuple(sorted({test for mutant in MUTANTS for test in mutant.tests}))
    done = run(mutate(None, whole, tmp_path), tests, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_no_two_mutants_have_one_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)

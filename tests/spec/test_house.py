"""The house's rules, read off the source itself: layers, sizes, what may be caught, what tests may do."""

from __future__ import annotations

import ast
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "holdfast"
TESTS = ROOT / "tests"

PURE = {
    *("__future__", "abc", "base64", "binascii", "bisect", "collections", "copy", "dataclasses", "enum", "functools"),
    *("hashlib", "heapq", "itertools", "json", "math", "operator", "re", "string", "struct", "types", "typing", "zlib"),
    *("holdfast", "msgspec"),
}
HEAVY_MARKERS = ("model", "mutants", "kill", "nfs", "vllm", "etcd", "agents", "sim", "browser", "integrations", "demo")
MODULE_LINES_MAX = 450
FUNCTION_LINES_MAX = 60

SOURCES = sorted(PACKAGE.rglob("*.py"))
TEST_SOURCES = sorted(TESTS.rglob("*.py"))


def _levels() -> dict[str, int]:
    """The picture in ARCHITECTURE.md: each part's level, which stands before the first one of that level."""
    picture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("\n## Layers\n")[1].split("```")[1]
    levels: dict[str, int] = {}
    level = -1
    for line in picture.strip("\n").splitlines():
        said = re.match(r"(\d|\s)\s+(\w+)(?:/|\.py)\s", line)
        assert said is not None, f"no part of the picture: {line}"
        level = level if said[1].isspace() else int(said[1])
        assert said[2] not in levels
        levels[said[2]] = level
    assert list(levels.values()) == sorted(levels.values(), reverse=True)
    return levels


# Imports go down only: to a lower level, or within one's own part.
LEVELS = _levels()
ALONE = {"serve": {"errors"}}  # and these import no more than that


def _name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imports(tree: ast.AST) -> list[str]:
    """Dotted names of all that is imported, inside functions too; `from holdfast import x` counts as holdfast.x."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _part(dotted: str) -> str:
    """holdfast.core.names → core; anything else → ""."""
    pieces = dotted.split(".")
    return pieces[1] if pieces[0] == "holdfast" and len(pieces) > 1 else ""


def _layer_violations(own: str, tree: ast.AST) -> list[str]:
    bad = []
    for name in _imports(tree):
        part = _part(name)
        if not part or part == own or part == "__version__":
            continue
        if LEVELS.get(part, 99) >= LEVELS[own] or part == "testing" or part not in ALONE.get(own, LEVELS):
            bad.append(name)
    return bad


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_go_down_only(path: pathlib.Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return
    assert part in LEVELS, f"{part} is in no layer: give it its place in the picture in ARCHITECTURE.md"
    assert _layer_violations(part, _tree(path)) == []


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ("core", "from holdfast.channel.storage import Storage"),
        ("core", "from holdfast.cli import main"),
        ("channel", "import holdfast.engines.vllm"),
        ("channel", "from holdfast import Channel"),
        ("sync", "from holdfast.run import launcher"),
        ("cli", "from holdfast.testing import memory"),
        ("errors", "from holdfast.core import names"),
        ("serve", "from holdfast.core import names"),
    ],
)
def test_the_rule_on_layers_can_fail(own: str, line: str) -> None:
    assert _layer_violations(own, ast.parse(f"def f():\n    {line}\n"))


def test_the_picture_has_every_part_and_no_other() -> None:
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(LEVELS) == parts - {"__init__", "__pycache__"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=_name)
def test_core_is_pure(path: pathlib.Path) -> None:
    assert {name.split(".")[0] for name in _imports(_tree(path))} <= PURE


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_modules_and_functions_fit_a_reader(path: pathlib.Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") + 1 <= MODULE_LINES_MAX
    long = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert long == {}
    assert path.name != "utils.py"


def _broad_handlers(tree: ast.AST) -> list[int]:
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {ast.unparse(kind).split(".")[-1] for kind in caught if kind is not None}
            if node.type is None or "Exception" in names or ("BaseException" in names and not _raises_last(node)):
                lines.append(node.lineno)
    return lines


def _raises_last(handler: ast.ExceptHandler) -> bool:
    """Catching everything is right where it only cleans up and raises the same again."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_nothing_is_caught_wholesale(path: pathlib.Path) -> None:
    assert _broad_handlers(_tree(path)) == []


@pytest.mark.parametrize("kind", ["", " Exception", " (OSError, Exception)", " BaseException"])
def test_the_rule_on_broad_handlers_can_fail(kind: str) -> None:
    assert _broad_handlers(ast.parse(f"try:\n    f()\nexcept{kind}:\n    g()\n"))


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_nothing_is_left_for_later(path: pathlib.Path) -> None:
    marks = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error"))
    assert re.findall(rf"\b(?:{marks})\b", path.read_text(encoding="utf-8")) == []


def _modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has loaded after `statement`."""
    script = (
        f"import sys, json; before = set(sys.modules); {statement}; print(json.dumps([*set(sys.modules) - before]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    return set(json.loads(done.stdout))


def test_import_is_light() -> None:
    loaded = _modules_after("import holdfast")
    assert "holdfast" in loaded
    assert len(loaded) <= 40, sorted(loaded)


def test_no_public_name_needs_tensors_to_be_imported() -> None:
    loaded = _modules_after("from holdfast import *")
    assert "holdfast.core.retention" in loaded
    assert not loaded & {"torch", "numpy", "safetensors", "transformers", "peft", "rich", "cyclopts"}


def test_every_public_name_is_there() -> None:
    import holdfast

    assert set(holdfast.__all__) <= set(dir(holdfast))
    for name in holdfast.__all__:
        assert getattr(holdfast, name) is not None
    with pytest.raises(AttributeError):
        _ = holdfast.nothing_of_this_name


def _sleeps(tree: ast.AST) -> list[int]:
    """Lines that sleep; `asyncio.sleep(0)` only yields."""
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("time.sleep", "sleep", "asyncio.sleep")
        and [ast.unparse(argument) for argument in node.args] != ["0"]
    ]
    return lines + [node.lineno for node in ast.walk(tree) if _imports_sleep(node)]


def _imports_sleep(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "time" and any(a.name == "sleep" for a in node.names)


@pytest.mark.parametrize("path", TEST_SOURCES, ids=_name)
def test_tests_wait_for_events_and_never_sleep(path: pathlib.Path) -> None:
    if path.relative_to(TESTS).parts[0] == "kill":
        return
    assert _sleeps(_tree(path)) == []


@pytest.mark.parametrize("line", ["time.sleep(1)", "from time import sleep", "await asyncio.sleep(0.1)"])
def test_the_rule_on_sleeping_can_fail(line: str) -> None:
    assert _sleeps(ast.parse(f"async def f():\n    {line}\n"))


def _markers(tree: ast.AST) -> set[str]:
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name.removeprefix("pytest.mark.") for name in used if name.startswith("pytest.mark.")}


@pytest.mark.parametrize("path", TEST_SOURCES, ids=_name)
def test_test_files_stand_where_their_kind_runs(path: pathlib.Path) -> None:
    """A heavy marker belongs to the folder of its name, so that a folder tells how long its tests take."""
    folder = path.relative_to(TESTS).parts[0]
    tree = _tree(path)
    assert _markers(tree) & set(HEAVY_MARKERS) <= {folder}
    holds_tests = any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in ast.walk(tree))
    assert not holds_tests or path.name.startswith("test_"), "pytest collects test_*.py only"
    assert path.parent != TESTS or path.name == "conftest.py", "tests live in the folder of their kind"

"""Every command that the documents show is one that the command line takes."""

from __future__ import annotations

import pathlib
import re

import pytest

from holdfast.cli.main import COMMANDS
from tests.support import commands

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = [(path, words) for path in DOCUMENTS for words in commands.in_document(path.read_text(encoding="utf-8"))]


def _name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(("path", "words"), SHOWN, ids=[f"{_name(path)}: {' '.join(words)}" for path, words in SHOWN])
def test_a_command_that_is_shown_is_taken(path: pathlib.Path, words: list[str]) -> None:
    commands.check(words)


def test_every_command_is_shown_somewhere() -> None:
    shown = {words[1] for _, words in SHOWN if words[0] == "holdfast"}
    assert set(COMMANDS) - {"unpin"} <= shown  # unpin is told of beside pin


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_a_command_that_is_named_in_passing_exists(path: pathlib.Path) -> None:
    named = re.findall(r"`holdfast ([a-z][a-z-]*)", path.read_text(encoding="utf-8"))
    assert set(named) <= set(COMMANDS)


@pytest.mark.parametrize(
    "line",
    [
        "holdfast ls",
        "holdfast sttus CHANNEL",
        "holdfast sync CHANNEL --url",
        "holdfast publish CHANNEL DIR --step soon",
        "$ holdfast ls CHANNEL --no-such-flag  # a comment",
        "srun holdfast run --nnodes 2 --no-such-flag train.py",
        "torchrun --rdzv-backend=holdfast --no-such-flag train.py",
    ],
)
def test_the_rule_on_commands_can_fail(line: str) -> None:
    (words,) = commands.in_document(f"```console\n{line}\n```\n")
    with pytest.raises(AssertionError):
        commands.check(words)


def test_commands_are_found_in_scripts() -> None:
    text = 'exec srun \\\n  holdfast run --nnodes "$N" \\\n  "${more[@]}" train.py >"$LOG" 2>&1 &\n# holdfast\n'
    assert commands.in_script(text) == [["holdfast", "run", "--nnodes", "1", "train.py"]]

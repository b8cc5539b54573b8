"""The example for Slurm says nothing that the command line does not take, and asks Slurm for what it relies on."""

from __future__ import annotations

import pathlib

import pytest

from tests.support import commands

SCRIPT = (pathlib.Path(__file__).resolve().parents[2] / "examples" / "slurm" / "train.sbatch").read_text()
COMMANDS = commands.in_script(SCRIPT)


def test_all_commands_are_found() -> None:
    assert sorted(words[1] for words in COMMANDS) == ["control", "drain", "members", "run", "stop"]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[1])
def test_commands(words: list[str]) -> None:
    commands.check(words)


@pytest.mark.parametrize("option", ["--no-kill", "--requeue", "--ntasks-per-node=1", "--signal=B:TERM@120"])
def test_options(option: str) -> None:
    assert f"\n#SBATCH {option}\n" in SCRIPT

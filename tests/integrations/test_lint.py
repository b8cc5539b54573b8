"""What users copy is checked by the tools of its field."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integrations

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = pathlib.Path(sys.executable).parent
SHELL = [ROOT / "examples/slurm/train.sbatch", ROOT / "tests/etcd/slurm/scontrol", ROOT / ".ci/run"]


def run(tool: str, *words: object, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(TOOLS / tool), *map(str, words)]
    return subprocess.run(command, input=said, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell(path: pathlib.Path) -> None:
    done = run("shellcheck", path)
    assert done.returncode == 0, done.stdout


def test_shellcheck_finds_something() -> None:
    assert run("shellcheck", "-", said="#!/bin/sh\nrm -rf $1/*\n").returncode == 1

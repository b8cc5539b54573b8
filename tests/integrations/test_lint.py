"""What users copy is checked by the tools of its field."""

from __future__ import annotations

import copy
import pathlib
import subprocess
import sys

import pytest

from tests.support import manifests

pytestmark = pytest.mark.integrations

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = pathlib.Path(sys.executable).parent
KUBERNETES = "1.37"
DOCKERFILE = ROOT / "examples/kubernetes/Dockerfile"
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


@pytest.mark.parametrize("where", manifests.scripts())
def test_shell_in_manifests(where: str) -> None:
    given = "INDEX=0 ATTEMPT=a POD_IP=b; export INDEX ATTEMPT POD_IP\n"
    done = run("shellcheck", "--shell=bash", "-", said=given + manifests.scripts()[where])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", manifests.objects())
def test_manifest(name: str) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(manifests.objects()[name], KUBERNETES, strict=True)


def test_the_schemas_find_a_misspelt_key() -> None:
    import kubernetes_validate

    job = copy.deepcopy(manifests.objects()["trainer.yaml/Job/trainer"])
    job["spec"]["backofLimitPerIndex"] = job["spec"].pop("backoffLimitPerIndex")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_dockerfile() -> None:
    done = run("hadolint", DOCKERFILE)
    assert done.returncode == 0, done.stdout
    assert run("hadolint", "-", said="FROM python\nRUN pip install holdfast\n").returncode == 1

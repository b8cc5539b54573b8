"""The manifests for Kubernetes: what they run exists, what they refer to is there, and who may write what."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support import commands, manifests

OBJECTS = manifests.objects()
PODS = manifests.pods()
SCRIPTS = manifests.scripts()


def _of_lists() -> dict[str, list[str]]:
    """holdfast's words in `command` and `args`; the image of sync has `holdfast` for its entry point."""
    found = {}
    for pod in PODS.values():
        for one in manifests.containers(pod):
            words = [*one.get("command", ()), *one.get("args", ())]
            if one["name"] == "sync":
                words = ["holdfast", *words]
            if words[0] == "holdfast":
                found[one["name"]] = words
    return found


LISTS = _of_lists()


def test_all_commands_are_found() -> None:
    assert sorted(LISTS) == ["control", "sync"]
    told = {where: [words[1] for words in commands.in_script(text)] for where, text in SCRIPTS.items()}
    assert told == {"trainer/command": ["run"], "trainer/preStop": ["drain"]}


@pytest.mark.parametrize("name", LISTS)
def test_commands_in_lists(name: str) -> None:
    commands.check(LISTS[name])


@pytest.mark.parametrize("where", SCRIPTS)
def test_commands_in_scripts(where: str) -> None:
    for words in commands.in_script(SCRIPTS[where]):
        commands.check(words)


@pytest.mark.parametrize("name", PODS)
def test_what_a_pod_refers_to_is_there(name: str) -> None:
    pod = PODS[name]
    spec = pod["spec"]
    claims = {one["metadata"]["name"] for one in OBJECTS.values() if one["kind"] == "PersistentVolumeClaim"}
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    templates = {each["metadata"]["name"] for each in OBJECTS[name]["spec"].get("volumeClaimTemplates", ())}
    for volume in volumes.values():
        assert volume.get("persistentVolumeClaim", {}).get("claimName", "models") in claims
    for one in manifests.containers(pod):
        assert {mount["name"] for mount in one["volumeMounts"]} <= set(volumes) | templates
        ports = {port["name"] for port in one["ports"]} if "ports" in one else set()
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = one.get(kind, {})
            assert {way["port"] for way in asked.values() if isinstance(way, dict)} <= ports
        given = {variable["name"] for variable in one.get("env", ())}
        words = " ".join([*one.get("command", ()), *one.get("args", ())])
        assert set(re.findall(r"\$\((\w+)\)", words)) <= given
        assert set(re.findall(r'"[^"]*\$([A-Z_]+)"', words)) <= given


def test_selectors_find_pods() -> None:
    labels = [pod["metadata"]["labels"] for pod in PODS.values()]
    selectors: list[dict[str, Any]] = []
    for one in OBJECTS.values():
        selector = one["spec"].get("selector", {})
        selectors += [selector.get("matchLabels", selector)] if selector else []
    assert len(selectors) == 8
    assert all(selector in labels for selector in selectors)


def test_the_jobs_numbers_agree() -> None:
    job = OBJECTS["trainer.yaml/Job/trainer"]["spec"]
    (words,) = commands.in_script(SCRIPTS["trainer/command"])
    nodes, spares = (int(words[words.index(flag) + 1]) for flag in ("--nnodes", "--spares"))
    assert job["completions"] == job["parallelism"] == nodes + spares
    assert job["maxFailedIndexes"] == spares
    assert OBJECTS["trainer.yaml/PodDisruptionBudget/trainer"]["spec"]["minAvailable"] == nodes
    grace_s = job["template"]["spec"]["terminationGracePeriodSeconds"]
    (drain,) = commands.in_script(SCRIPTS["trainer/preStop"])
    assert int(drain[drain.index("--timeout") + 1]) < grace_s
    rule = job["podFailurePolicy"]["rules"][1]["onExitCodes"]
    assert rule["containerName"] in [one["name"] for one in manifests.containers(job["template"])]


def test_servers_cannot_write_to_the_channel_and_share_the_stage_alone() -> None:
    sync, vllm = manifests.container("sync"), manifests.container("vllm")
    mounts = {mount["name"]: mount for mount in sync["volumeMounts"]}
    assert mounts["weights"]["readOnly"] is True
    assert "readOnly" not in mounts["claims"]
    shared = {mount["name"] for mount in vllm["volumeMounts"]} & set(mounts)
    assert shared == {"stage"}
    assert [mount["readOnly"] for mount in vllm["volumeMounts"] if mount["name"] == "stage"] == [True]
    users = {one["securityContext"]["runAsUser"] for one in (sync, vllm)}
    trainer = PODS["trainer.yaml/Job/trainer"]["spec"]["securityContext"]["runAsUser"]
    assert len(users | {trainer}) == 3


def test_nothing_that_starts_or_kills_sync_waits_for_its_server() -> None:
    sync = manifests.container("sync")
    assert sync["restartPolicy"] == "Always"
    assert "tcpSocket" in sync["startupProbe"]
    assert "tcpSocket" in sync["livenessProbe"]
    assert sync["readinessProbe"]["httpGet"]["path"] == "/healthz"


@pytest.mark.parametrize("name", PODS)
def test_no_container_is_root_or_may_become_it(name: str) -> None:
    pod = PODS[name]
    own = pod["spec"]["securityContext"]
    assert own["runAsNonRoot"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False
    for one in manifests.containers(pod):
        secured = one["securityContext"]
        assert secured["allowPrivilegeEscalation"] is False
        assert secured["capabilities"] == {"drop": ["ALL"]}
        assert secured.get("runAsUser", own.get("runAsUser", 0)) > 0
        assert not one["image"].endswith("latest")

"""The manifests of examples/kubernetes, as data."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import yaml

DIRECTORY = pathlib.Path(__file__).resolve().parents[2] / "examples" / "kubernetes"


def objects() -> dict[str, dict[str, Any]]:
    """Every object by "file/Kind/name"."""
    found = {}
    for path in sorted(DIRECTORY.glob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            found[f"{path.name}/{one['kind']}/{one['metadata']['name']}"] = one
    return found


def pods() -> dict[str, dict[str, Any]]:
    """The pod template of every object that makes pods, by the object's name."""
    return {name: one["spec"]["template"] for name, one in objects().items() if "template" in one["spec"]}


def containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = pod["spec"]
    yield from spec.get("initContainers", ())
    yield from spec["containers"]


def container(name: str) -> dict[str, Any]:
    """The container of this name."""
    (found,) = (one for pod in pods().values() for one in containers(pod) if one["name"] == name)
    return found


def scripts() -> dict[str, str]:
    """Every shell script within the manifests, by where it stands."""
    found = {}
    for pod in pods().values():
        for one in containers(pod):
            hook = one.get("lifecycle", {}).get("preStop", {}).get("exec", {})
            for where, command in (("command", one.get("command", ())), ("preStop", hook.get("command", ()))):
                if tuple(command[:2]) == ("/bin/bash", "-c"):
                    found[f"{one['name']}/{where}"] = command[2]
    return found

"""Another user of the machine: what the channel's modes let it do, and what it is told where they don't.

It stands here because only root can become somebody else.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast import Channel
from holdfast.channel.payload import Payload
from holdfast.channel.sources import BytesSource
from holdfast.core.names import Version

pytestmark = pytest.mark.nfs

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
NOBODY = 65534
# Everything is imported as root: the other user may not be able to read this repository.
BECOME = f"""
import json, os, pathlib, sys
import holdfast.channel.consumer, holdfast.channel.posix, holdfast.channel.publisher, holdfast.channel.watch
import inotify_simple
from holdfast import Channel
from holdfast.channel.payload import Payload
from holdfast.channel.sources import BytesSource
from holdfast.errors import HoldfastError
root, stage = sys.argv[1:]
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); os.umask(0o077)
told = {{"uid": os.getuid()}}
try:
    use(Channel(root), stage, told)
except HoldfastError as error:
    told["error"], told["code"], told["hint"] = type(error).__name__, error.code, error.hint
print(json.dumps(told))
"""

CONSUME_IN_PLACE = """
def use(channel, stage, told):
    with channel.consumer("other") as consumer:
        held = consumer.take(timeout_s=30)
        told["version"], told["text"] = str(held.name), (held.path / "w.bin").read_text()
        held.acknowledge()
        told["modes"] = [oct(path.stat().st_mode & 0o777) for path in pathlib.Path(root, "consumers").glob("other.*")]
"""
CONSUME_A_COPY = """
def use(channel, stage, told):
    with channel.consumer("other", stage=stage) as consumer:
        held = consumer.take(timeout_s=30)
        told["version"], told["text"] = str(held.name), (held.path / "w.bin").read_text()
        told["is_copy"] = str(held.path).startswith(stage)
        held.acknowledge()
"""
PUBLISH = """
def use(channel, stage, told):
    with channel.publisher() as publisher:
        publisher.publish_payload(9, Payload(files=(("w.bin", BytesSource([b"other"])),), kind="test"))
"""
TAKE_A_NAME_OVER = """
def use(channel, stage, told):
    with channel.consumer("ours") as consumer:
        told["held"] = [str(held.name) for held in consumer.held]
"""
SWEEP = """
def use(channel, stage, told):
    with channel.sweeper() as sweeper:
        told["removed"] = sweeper.sweep().removed
"""


@pytest.fixture
def root() -> Iterator[pathlib.Path]:
    """A channel that root has made where others may go, with one version."""
    assert os.geteuid() == 0, "this suite runs as root"
    above = pathlib.Path(tempfile.mkdtemp(prefix="holdfast-"))
    above.chmod(0o755)
    mask = os.umask(0o077)
    try:
        yield above / "channel"
    finally:
        os.umask(mask)
        shutil.rmtree(above)


def publish(root: pathlib.Path, *steps: int) -> list[Version]:
    with Channel(root).publisher(sweep=False) as publisher:
        return [
            publisher.publish_payload(step, Payload(files=(("w.bin", BytesSource([b"step %d" % step])),), kind="test"))
            for step in steps
        ]


def as_nobody(script: str, root: pathlib.Path) -> dict[str, Any]:
    """What `script` told, run by another user."""
    stage = root.parent / "stage"
    stage.mkdir(exist_ok=True)
    os.chown(stage, NOBODY, NOBODY)
    command = [sys.executable, "-c", script + BECOME, str(root), str(stage)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["uid"] == NOBODY
    return told


def test_another_user_consumes_in_place(root: pathlib.Path) -> None:
    """Whatever root's umask was: directories are 0755, files 0644, and consumers/ takes everybody's file."""
    (version,) = publish(root, 1)
    told = as_nobody(CONSUME_IN_PLACE, root)
    assert told == {"uid": NOBODY, "version": str(version), "text": "step 1", "modes": ["0o644"]}
    assert list((root / "consumers").iterdir()) == [], "it has left"


def test_another_user_that_may_not_write_its_hold_is_told_to_stage(root: pathlib.Path) -> None:
    (version,) = publish(root, 1)
    (root / "consumers").chmod(0o755)
    told = as_nobody(CONSUME_IN_PLACE, root)
    assert (told["error"], told["code"]) == ("UsageError", "cannot_hold")
    assert "stage=" in told["hint"]
    told = as_nobody(CONSUME_A_COPY, root)
    assert told == {"uid": NOBODY, "version": str(version), "text": "step 1", "is_copy": True}


@pytest.mark.parametrize("script", [PUBLISH, SWEEP])
def test_another_user_neither_publishes_nor_sweeps(script: str, root: pathlib.Path) -> None:
    versions = publish(root, 1, 2, 3, 4)
    told = as_nobody(script, root)
    if script is PUBLISH:
        assert told["error"] == "UnavailableError"
        assert told["code"] == "errno_eacces"
        assert "doctor" in told["hint"]
    else:
        assert told["removed"] == []
    assert Channel(root).observer().versions() == frozenset(versions)


def test_another_user_cannot_take_over_a_name_that_is_ours(root: pathlib.Path) -> None:
    """consumers/ is sticky: what one user holds, another one neither inherits nor ends."""
    (version,) = publish(root, 1)
    with Channel(root).consumer("ours") as ours:
        held = ours.take(timeout_s=30)
        assert held is not None
        told = as_nobody(TAKE_A_NAME_OVER, root)
        assert (told["error"], told["code"]) == ("UsageError", "cannot_hold")
        held.acknowledge()
        (record,) = (seen.record for seen in Channel(root).observer().consumers().values())
        assert record is not None
        assert record.holds == (str(version),)

"""sync killed -9 at every step of an update, and started again: the same end, and nothing leaks."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from holdfast.core.names import Version
from holdfast.testing.adapters import read_weights
from holdfast.testing.server import Reply, Request
from holdfast.testing.vllm import FakeVLLM
from tests.support.channels import until
from tests.support.syncing import PATIENCE_S, Scene, end

CHANGES = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
CHANGES_IN_PLACE = CHANGES | {"/pause", "/resume", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version"}


class Deadly(FakeVLLM):
    """Kills its caller at the nth request that changes something, before it obeys or after."""

    def __init__(self) -> None:
        super().__init__()
        self.victim: subprocess.Popen[str] | None = None
        self.left = 0
        self.obeys = False
        self.changes = 0

    def handle(self, request: Request) -> Reply:
        if request.path in CHANGES_IN_PLACE:
            self.changes += 1
            self.left -= 1
            if self.left == 0 and self.victim is not None:
                reply = super().handle(request) if self.obeys else Reply.of({}, 500)
                os.kill(self.victim.pid, signal.SIGKILL)
                return reply
        return super().handle(request)


WAYS = {"versioned": (), "stable": ("--naming", "stable"), "weights": ("--weights", "full")}


@pytest.mark.parametrize("obeys", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("way", WAYS)
def test_I7_sync_killed_at_each_request_of_an_update_goes_on(scene: Scene, way: str, obeys: bool) -> None:
    server = scene.take(Deadly())
    publisher = scene.publisher(sweep=False)
    words = scene.command(server, *WAYS[way], "--poll", "0.1")
    process = scene.process(*words)
    _until_at_rest(scene, server, way, scene.publish(publisher, 1, full=way == "weights"))
    for nth in range(1, 20):
        before = server.changes
        server.victim, server.left, server.obeys = process, nth, obeys
        version = scene.publish(publisher, 1 + nth, full=way == "weights")
        _until_killed_or_at_rest(scene, server, way, version)
        if server.left > 0:  # the update had fewer requests than that
            assert nth > 1
            assert server.changes - before >= 2, "an update that changes nothing was not killed anywhere"
            break
        assert process.wait(60) == -signal.SIGKILL
        process = scene.process(*words)
        _until_at_rest(scene, server, way, version)
    else:
        pytest.fail("an update has no end")
    assert server.deaths == []
    assert end(process, signal.SIGTERM) == 0
    _until_at_rest(scene, server, way, version)


def _until_at_rest(scene: Scene, server: FakeVLLM, way: str, version: Version) -> None:
    until(lambda: _is_at_rest(scene, server, way, version), f"{version} was never all there is", timeout_s=PATIENCE_S)


def _until_killed_or_at_rest(scene: Scene, server: Deadly, way: str, version: Version) -> None:
    until(lambda: server.left <= 0 or _is_at_rest(scene, server, way, version), timeout_s=PATIENCE_S)


def _is_at_rest(scene: Scene, server: FakeVLLM, way: str, version: Version) -> bool:
    """Nothing but `version` on the server, on the disk, and in what the channel is told."""
    with server.changed:
        if way == "weights":
            there = server.label == str(version) and server.weights == _read(scene, version)
        else:
            name = "policy" if way == "stable" else f"policy-{version}"
            there = list(server.loaded.items()) == [(name, _place(scene, version))]
        there = there and not server.paused
    consumer = scene.consumer()
    return there and scene.copies() == {str(version)} and consumer is not None and consumer.acknowledged == str(version)


def _read(scene: Scene, version: Version) -> bytes:
    """What the server has in memory if it has read this version."""
    return read_weights(_place(scene, version)) if os.path.isdir(_place(scene, version)) else b""


def _place(scene: Scene, version: Version) -> str:
    return str(scene.stage / "policy" / "sync" / "versions" / str(version))


def test_sigterm_leaves_what_is_served_and_the_next_one_loads_nothing_again(scene: Scene) -> None:
    server = scene.server()
    version = scene.publish(scene.publisher(), 1)
    process = scene.process(*scene.command(server))
    _until_at_rest(scene, server, "versioned", version)
    assert end(process, signal.SIGTERM) == 0
    loaded = dict(server.loaded)
    loads = server.routes().count("POST /v1/load_lora_adapter")
    sync = scene.sync(server)
    sync.until_serves(version)
    assert (server.loaded, server.routes().count("POST /v1/load_lora_adapter")) == (loaded, loads)

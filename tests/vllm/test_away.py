"""The storage is away for a minute, and an orchestrator's event loop stands still for longer than a lease."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

import holdfast
from tests.support.channels import thread
from tests.vllm.scene import Scene

pytestmark = pytest.mark.vllm

AWAY_S = 60.0
BLOCKED_S = 70.0
ORCHESTRATOR_LEASE_S = 20.0


@pytest.mark.timeout(300)
def test_nothing_is_lost_while_the_storage_is_away_and_an_event_loop_is_blocked(scene: Scene) -> None:
    """One channel's storage goes away. On another one an orchestrator holds a version and does not run."""
    away, busy = scene.publisher("mount/away"), scene.publisher("busy")
    first, held = scene.publish(away, 1), scene.publish(busy, 1)
    sync = scene.configured(
        "".join(
            f'[[channels]]\npath = "{scene.place(place)}"\nadapter = "{adapter}"\n'
            for place, adapter in (("mount/away", "a"), ("busy", "b"))
        )
        + f'[[servers]]\nurl = "{scene.server.url}"\nresidents_total = 3\n'
    )
    sync.until_serves(first, "a")
    sync.until_serves(held, "b")
    orchestrator = Orchestrator(scene, sync.url)
    with thread(orchestrator.run), scene.crowd(sync, adapter="a") as asks_a, scene.crowd(sync, adapter="b") as asks_b:
        assert orchestrator.blocked.wait(30.0)
        scene.place("mount").rename(scene.path / "gone")
        try:
            for step in range(2, 2 + int(AWAY_S / 2)):
                last = scene.publish(busy, step)
                threading.Event().wait(2.0)
                assert sync.serves("a")["version"] == str(first)
                assert f"a-{first}" in scene.server.adapters()
        finally:
            (scene.path / "gone").rename(scene.place("mount"))
        newest = scene.publish(away, 2)
        sync.until_serves(newest, "a")
        sync.until_serves(last, "b")
        orchestrator.newest = str(last)
        orchestrator.go_on.set()
        sync.until(orchestrator.over.is_set)
    assert asks_a.failed == []
    assert asks_b.failed == []
    scene.check([*asks_a.answers, *asks_b.answers])
    assert orchestrator.held == str(held)
    assert orchestrator.kept, "what it held was deleted"
    assert orchestrator.served == str(last)
    scene.until_acknowledged(newest, "mount/away")


class Orchestrator:
    """A program on an event loop: holds a version, blocks the loop for more than a lease, then asks what is served."""

    def __init__(self, scene: Scene, url: str) -> None:
        self.blocked = threading.Event()
        self.go_on = threading.Event()
        self.over = threading.Event()
        self.newest = ""
        self.held = ""
        self.kept = False
        self.served = ""
        self._channel = holdfast.Channel(scene.place("busy"), lease_s=ORCHESTRATOR_LEASE_S)
        self._url = url

    def run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        with contextlib.ExitStack() as stack:
            served = stack.enter_context(holdfast.Served([self._url], adapter="b"))
            async with self._channel.consumer("orchestrator") as consumer:
                held = await consumer.atake(timeout_s=30.0)
                assert held is not None
                self.held = str(held.name)
                self.blocked.set()
                threading.Event().wait(BLOCKED_S)
                self.kept = not held.lost and (held.path / "adapter_model.safetensors").exists()
                held.release()
                assert await asyncio.to_thread(self.go_on.wait, 120.0)
                await served.until_served(self.newest, timeout_s=60.0)
                self.served = str(served.now()[0].version)
        self.over.set()

"""For orchestrators: what is served, and waiting for it."""

from __future__ import annotations

import asyncio
import threading

import pytest

import holdfast
from holdfast.core.names import Version
from tests.support.channels import until
from tests.support.syncing import Scene

V = Version(9, 9, 0, "000000")


def test_what_to_ask_for_and_which_version_answers(scene: Scene) -> None:
    server = scene.server()
    sync = scene.sync(server)
    with holdfast.Served([sync.url]) as served:
        version = scene.publish(scene.publisher(), 3)
        (one,) = served.wait_until_served(version, timeout_s=60.0)
        assert (one.url, one.model, one.version, one.adapter) == (server.url, f"policy-{version}", version, "policy")
        assert served.wait_until_served(str(version), timeout_s=0.0) == served.wait_until_served(3, timeout_s=0.0)
        until(lambda: served.now()[0].state == "ready")
        assert served.ready() == served.now()


def test_a_quorum_is_a_number_or_a_share(scene: Scene) -> None:
    servers = [scene.server() for _ in range(3)]
    servers[2].die("away")
    sync = scene.sync(*servers)
    version = scene.publish(scene.publisher(), 1)
    with holdfast.Served([sync.url]) as served:
        assert len(served.wait_until_served(version, quorum=2, timeout_s=60.0)) == 2
        assert len(served.wait_until_served(version, quorum=0.6, timeout_s=60.0)) == 2
        with pytest.raises(holdfast.TimedOutError) as caught:
            served.wait_until_served(version, timeout_s=0.3)
        assert caught.value.code == "not_served"
        assert f"{servers[2].url}: gone" in str(caught.value)
        assert len(served.ready()) == 2


def test_the_event_loop_goes_on_while_it_waits(scene: Scene) -> None:
    server = scene.server()
    sync = scene.sync(server)
    publisher = scene.publisher()
    turns = 0

    async def wait() -> None:
        nonlocal turns
        async with holdfast.Served([sync.url]) as served:
            waiting = asyncio.ensure_future(served.until_served(5, timeout_s=60.0))
            for _ in range(20):
                await asyncio.sleep(0)
                turns += 1
            assert not waiting.done()
            version = await asyncio.to_thread(scene.publish, publisher, 5)
            assert [one.version for one in await waiting] == [version]
            with pytest.raises(holdfast.TimedOutError):
                await served.until_served(6, timeout_s=0.05)

    asyncio.run(wait())
    assert turns == 20
    assert not [thread.name for thread in threading.enumerate() if thread.name == "holdfast-served"]


def test_a_rewind_ends_the_waiting_for_what_will_never_come(scene: Scene) -> None:
    sync = scene.sync(scene.server())
    with holdfast.Channel(scene.path / "channel", lease_s=20.0).publisher(sweep=False) as first:
        low = scene.publish(first, 1)
        high = scene.publish(first, 9)
        sync.until_serves(high)
    again = scene.publisher(resume_from=low)
    new = scene.publish(again, 2)
    with holdfast.Served([sync.url]) as served:
        served.wait_until_served(new, timeout_s=60.0)
        with pytest.raises(holdfast.RewoundError):
            served.wait_until_served(high, timeout_s=60.0)


def test_nobody_answers(scene: Scene) -> None:
    server = scene.server()
    server.die("away")
    with holdfast.Served([server.url]) as served:
        with pytest.raises(holdfast.TimedOutError) as caught:
            served.wait_until_served(1, timeout_s=0.2)
        assert "nobody answers" in str(caught.value)
        assert served.now() == ()
    with pytest.raises(holdfast.UsageError):
        holdfast.Served(server.url)


def test_a_sync_process_that_falls_silent_serves_nothing_that_is_known(scene: Scene) -> None:
    sync = scene.sync(scene.server())
    version = scene.publish(scene.publisher(), 1)
    with holdfast.Served([sync.url]) as served:
        served.wait_until_served(version, timeout_s=60.0)
        sync.stop()
        until(lambda: served.now()[0].version is None)
        assert served.ready() == ()
        assert "cannot be reached" in served.now()[0].reason

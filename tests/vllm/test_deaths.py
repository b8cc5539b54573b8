"""The server dies, or sync does, at any moment: the next one goes on from what it finds."""

from __future__ import annotations

import time

import pytest

from holdfast.channel.publisher import Publisher
from holdfast.core.names import Version
from tests.vllm.crowd import PROMPTS, TOKENS
from tests.vllm.process import SyncProcess
from tests.vllm.scene import Scene

pytestmark = pytest.mark.vllm

SERVING_AGAIN_S = 5.0
REQUESTS_MAX = 20
WAYS = {"versioned": (), "stable": ("--naming", "stable"), "weights": ("--weights", "full", "--base-model", "any")}


@pytest.mark.timeout(400)
def test_a_server_that_was_killed_serves_the_newest_version_soon_after_it_is_back(scene: Scene) -> None:
    """Nothing is published meanwhile; clients that try again see no wrong answer."""
    publisher = scene.publisher()
    scene.publish(publisher, 1)
    newest = scene.publish(publisher, 2)
    sync = scene.sync()
    sync.until_serves(newest)
    with scene.crowd(sync, patient=True) as crowd:
        sync.until(lambda: crowd.count >= 5)
        scene.server.kill()
        sync.until(lambda: sync.serves()["state"] == "gone", "nobody noticed")
        assert sync.serves()["version"] is None, "a label without a server"
        scene.server.start()
        up_s = time.monotonic()
        again = crowd.count
        sync.until(lambda: crowd.count > again)
        took_s = time.monotonic() - up_s
        sync.until_serves(newest)
    assert took_s <= SERVING_AGAIN_S, f"{took_s:.1f} s"
    scene.check(crowd.answers)
    assert crowd.statuses <= {0, 404, 500, 503}, crowd.failed
    scene.until_only(newest)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
def test_sync_killed_at_every_request_of_an_update_ends_up_the_same(scene: Scene, way: str) -> None:
    """kill -9 before the server has the request, and after it obeyed but before sync hears of it."""
    tap = scene.tap()
    publisher = scene.publisher()
    last = _publish(scene, publisher, way, 1)
    sync = scene.sync(*WAYS[way], "--linger", "0.2", url=tap.url)
    _until_at_rest(scene, sync, way, last)
    killed = []
    for obeyed in (False, True):
        for nth in range(1, REQUESTS_MAX):
            asked = len(tap.asked)
            tap.stop_at(nth, obeyed=obeyed)
            last = _publish(scene, publisher, way, last.step + 1)
            sync.until(lambda last=last: tap.reached.is_set() or _is_at_rest(scene, sync, way, last))
            if not tap.reached.is_set():
                tap.let_go()
                break
            killed.append(tap.asked[asked + nth - 1].path)
            sync.kill()
            tap.let_go()
            sync.start()
            _until_at_rest(scene, sync, way, last)
            _check_answers(scene, sync, way)
        else:
            pytest.fail("an update has no end")
    print(f"{way}: killed at {', '.join(killed)}")
    assert set(killed) >= EXPECTED[way]


EXPECTED = {
    "versioned": {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"},
    "stable": {"/pause", "/v1/unload_lora_adapter", "/v1/load_lora_adapter", "/resume"},
    "weights": {"/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"},
}


@pytest.mark.timeout(300)
def test_sync_killed_soon_after_it_began_to_copy_and_right_after_it_acknowledged(scene: Scene) -> None:
    publisher = scene.publisher()
    last = scene.publish(publisher, 1)
    sync = scene.sync("--linger", "0.2")
    _until_at_rest(scene, sync, "versioned", last)
    for step in range(2, 6):
        before = scene.staged()
        last = scene.publish(publisher, step)
        sync.until(lambda before=before: scene.staged() - before, "it never copies")
        sync.kill()
        sync.start()
        scene.until_acknowledged(last)
        sync.kill()
        sync.start()
        _until_at_rest(scene, sync, "versioned", last)
    _check_answers(scene, sync, "versioned")


def _publish(scene: Scene, publisher: Publisher, way: str, step: int) -> Version:
    if way == "weights":
        return scene.publish_full(publisher, step, seed=1 + step % 3)
    return scene.publish(publisher, step)


def _until_at_rest(scene: Scene, sync: SyncProcess, way: str, version: Version) -> None:
    sync.until(lambda: _is_at_rest(scene, sync, way, version), f"{version} is not all there is")


def _is_at_rest(scene: Scene, sync: SyncProcess, way: str, version: Version) -> bool:
    """Nothing but `version` on the server, on the disk, and in what is told."""
    said = sync.serves()
    if (said.get("version"), said.get("state")) != (str(version), "ready") or scene.server.is_paused():
        return False
    path = str(scene.stage / "policy" / "sync" / "versions" / str(version))
    wanted = {} if way == "weights" else {"policy" if way == "stable" else f"policy-{version}": path}
    there = scene.server.adapters() == wanted and (way != "weights" or scene.server.label() == str(version))
    return there and scene.copies() == {str(version)} and scene.acknowledged() == str(version)


def _check_answers(scene: Scene, sync: SyncProcess, way: str) -> None:
    said = sync.serves()
    book = scene.checkpoints if way == "weights" else scene.adapters
    for prompt in PROMPTS:
        tokens = scene.server.client.tokens(said["model"], prompt, max_tokens=TOKENS, ignore_eos=True)
        assert book.is_pure(said["version"], prompt, tuple(tokens))

"""Versions come all the time and clients never stop asking: each answer is wholly of the version that it is told of."""

from __future__ import annotations

import threading
import time

import pytest

from tests.vllm.crowd import PROMPTS
from tests.vllm.scene import NAMING, Scene

pytestmark = pytest.mark.vllm

VERSIONS = 200
CERTAIN_MIN = 20  # on a busy machine most answers take longer than a version lasts
SERVED_MIN = 60
PER_S = 2.0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("naming", NAMING)
def test_200_adapters_are_brought_in_while_clients_ask(scene: Scene, naming: str) -> None:
    """The channel keeps one version, the server has room for two; no answer is anything but 200.

    With a name each, up to three are loaded at once: what the server has no room for it reads again, from its copy.
    """
    pace = threading.Event()
    publisher = scene.publisher(keep=1)
    first = scene.publish(publisher, 1)
    sync = scene.sync("--naming", naming, "--residents", "3")
    sync.until_serves(first)
    with scene.crowd(sync) as crowd:
        due_s = time.monotonic()
        for step in range(2, VERSIONS + 1):
            due_s += 1 / PER_S
            pace.wait(max(0.0, due_s - time.monotonic()))
            last = scene.publish(publisher, step)
        sync.until_serves(last)
        enough = crowd.count + 6
        sync.until(lambda: crowd.count >= enough)
    assert crowd.failed == []
    makers, certain = scene.check(crowd.answers), crowd.versions()
    print(f"{makers.total()} answers by {len(makers)} of {VERSIONS} versions, {certain.total()} at rest")
    assert len(makers) >= SERVED_MIN
    assert certain.total() >= CERTAIN_MIN, "hardly an answer can be of one version only"
    assert str(last) in makers
    assert scene.server.is_up()
    scene.until_acknowledged(last)
    scene.until_only(last, naming=naming)


@pytest.mark.timeout(300)
def test_20_checkpoints_are_brought_in_while_clients_ask(scene: Scene) -> None:
    """Whole models, told apart by prompts that are longer than a block of the prefix cache, too."""
    blocks = len(scene.adapters.tokenizer(PROMPTS[-1]).input_ids) / scene.server.block_tokens()
    assert blocks > 1, "no prompt is longer than a block"
    publisher = scene.publisher(keep=1)
    first = scene.publish_full(publisher, 1, seed=1)
    sync = scene.sync("--weights", "full", "--base-model", "any")
    sync.until_serves(first)
    with scene.crowd(sync) as crowd:
        for step in range(2, 21):
            version = scene.publish_full(publisher, step, seed=1 + step % 3)
            sync.until_serves(version)
            sync.until(lambda version=version: crowd.versions()[str(version)] >= len(PROMPTS))
    assert crowd.failed == []
    scene.check(crowd.answers, scene.checkpoints)
    assert set(crowd.versions()) >= set(scene.published[1:])
    assert scene.server.label() == str(version)
    assert not scene.server.is_paused()
    scene.until_acknowledged(version)

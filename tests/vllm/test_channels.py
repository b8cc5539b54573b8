"""Several channels on one server, and one channel whose trainer is replaced or goes back."""

from __future__ import annotations

import shutil
import time

import pytest

from tests.vllm.process import until
from tests.vllm.scene import NAMING, Scene

pytestmark = pytest.mark.vllm


@pytest.mark.timeout(300)
def test_a_channel_that_ends_is_retired_and_the_other_one_goes_on(scene: Scene) -> None:
    here, there = scene.publisher("runs/a/weights"), scene.publisher("runs/b/weights")
    first, other = scene.publish(here, 1), scene.publish(there, 1)
    sync = scene.sync("--retire", "1", channels=["runs/*/weights"])
    sync.until_serves(first, "a")
    sync.until_serves(other, "b")
    with scene.crowd(sync, adapter="a") as asks_a:
        with scene.crowd(sync, adapter="b") as asks_b:
            sync.until(lambda: asks_a.count >= 5 and asks_b.count >= 5)
            other = scene.publish(there, 2)
            sync.until_serves(other, "b")
        there.close()
        (scene.path / "runs" / "b").rename(scene.path / "ended")
        sync.until(lambda: not sync.serves("b"), "it is followed for ever")
        assert not [name for name in scene.server.adapters() if name.startswith("b-")]
        until(lambda: scene.copies("b") == set(), "its copies stay")
        newest = scene.publish(here, 2)
        sync.until_serves(newest, "a")
        enough = asks_a.count + 3
        sync.until(lambda: asks_a.count >= enough)
    shutil.rmtree(scene.path / "ended")
    assert asks_a.failed == []
    assert asks_b.failed == []
    answers = [*asks_a.answers, *asks_b.answers]
    scene.check(answers)
    scene.until_only(newest, adapter="a")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("naming", NAMING)
def test_after_a_rewind_was_acknowledged_nobody_hears_of_what_lies_outside_the_lineage(
    scene: Scene, naming: str
) -> None:
    """The trainer is replaced in the middle by one of a higher cycle; that one by one that goes back."""
    publisher = scene.publisher(keep=4)
    versions = [scene.publish(publisher, step) for step in (1, 2)]
    sync = scene.sync("--naming", naming)
    sync.until_serves(versions[-1])
    with scene.crowd(sync) as crowd:
        second = scene.publisher(keep=4, resume_from=versions[-1])
        versions += [scene.publish(second, step) for step in (3, 4, 5, 6)]
        sync.until_serves(versions[-1])
        sync.until(lambda: crowd.versions()[str(versions[-1])] >= 3)
        back = versions[3]  # step 4
        third = scene.publisher(keep=4, resume_from=back)
        sync.until_serves(back)
        scene.until_acknowledged(back)
        acknowledged_s = time.monotonic()
        sync.until(lambda: crowd.versions()[str(back)] >= 3)
        newest = scene.publish(third, 5)
        sync.until_serves(newest)
        sync.until(lambda: crowd.versions()[str(newest)] >= 3)
    outside = {str(version) for version in versions[4:]}
    assert crowd.failed_but_for(outside) == []
    scene.check(crowd.answers)
    for answer in crowd.answers:
        if answer.ended_s > acknowledged_s:
            assert answer.exact not in outside
        if answer.began_s > acknowledged_s:
            assert not any(scene.adapters.is_pure(one, answer.prompt, answer.tokens) for one in outside), answer
    scene.until_only(newest, naming=naming)

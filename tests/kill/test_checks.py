"""The checks of this suite can fail: each finds what it is there for."""

from __future__ import annotations

import pathlib

import pytest

import holdfast
from holdfast.channel.payload import Payload
from holdfast.channel.sources import BytesSource
from tests.kill.checks import Checker, Claims, Told
from tests.kill.journal import Journal, Reader, digests

DATA = b"weights"


class Scene:
    """A channel with versions of steps 1 to 3, and the journal that its publisher would have written."""

    def __init__(self, base: pathlib.Path) -> None:
        self.base = base
        self.channel = base / "channel"
        (base / "journals").mkdir()
        self.journal = Journal(base / "journals" / "publisher-1.jsonl")
        self.consumer = Journal(base / "journals" / "consumer-1.jsonl")
        with holdfast.Channel(self.channel, events=False).publisher(sweep=False) as publisher:
            self.names = []
            for step in (1, 2, 3):
                payload = Payload(files=(("w.bin", BytesSource([DATA, b"%d" % step])),), kind="test")
                self.names.append(str(publisher.publish_payload(step, payload)))
        for step, name in zip((1, 2, 3), self.names, strict=True):
            self.journal.say("intends", cycle=1, step=step, files=digests(self.directory(name)))
            self.journal.say("committed", name=name)
        told = Told(Reader(base / "journals"))
        self.checker = Checker(self.channel, told, keep_recent=2, max_bytes=1000)

    def directory(self, name: str) -> pathlib.Path:
        return self.channel / "versions" / name

    def remove(self, name: str) -> None:
        (self.channel / "gone").mkdir(exist_ok=True)
        self.directory(name).rename(self.channel / "gone" / name)


@pytest.fixture
def scene(tmp_path: pathlib.Path) -> Scene:
    return Scene(tmp_path)


def test_a_sound_channel_has_no_problems(scene: Scene) -> None:
    for name in scene.names:
        scene.consumer.say("given", version=name, files=digests(scene.directory(name)))
    assert scene.checker.while_they_run() == []
    assert scene.checker.at_rest() == []
    assert scene.checker.newest() == scene.names[2]


def test_other_bytes_are_found(scene: Scene) -> None:
    (scene.directory(scene.names[1]) / "w.bin").write_bytes(b"torn")
    assert any("is torn" in problem for problem in scene.checker.while_they_run())


def test_a_missing_file_is_found(scene: Scene) -> None:
    (scene.directory(scene.names[1]) / "STABLE").unlink()
    assert any("is torn" in problem for problem in scene.checker.while_they_run())


def test_the_loss_of_the_newest_is_found(scene: Scene) -> None:
    scene.remove(scene.names[2])
    assert any("was committed" in problem for problem in scene.checker.while_they_run())


def test_the_loss_of_what_was_retained_is_found(scene: Scene) -> None:
    assert scene.checker.while_they_run() == []
    scene.remove(scene.names[1])
    assert any("was retained" in problem for problem in scene.checker.while_they_run())


def test_wrong_bytes_that_a_consumer_read_are_found(scene: Scene) -> None:
    scene.consumer.say("given", version=scene.names[0], files={"w.bin": "0"})
    assert any("wrong bytes" in problem for problem in scene.checker.while_they_run())


@pytest.mark.parametrize("twin", [False, True])
def test_a_lost_copy_is_a_problem_unless_two_had_the_name(scene: Scene, twin: bool) -> None:
    scene.consumer.say("started")
    other = Journal(scene.base / "journals" / ("consumer-2.jsonl" if twin else "consumer-b-2.jsonl"))
    for word in ("started", "ended"):
        other.say(word)
    scene.consumer.say("lost copy", version=scene.names[0])
    assert any("had its name alone" in problem for problem in scene.checker.at_rest()) is not twin


def test_a_consumer_that_goes_back_is_found(scene: Scene) -> None:
    for name in (scene.names[2], scene.names[0]):
        scene.consumer.say("given", version=name, files=digests(scene.directory(name)))
    assert any("was given after" in problem for problem in scene.checker.at_rest())


def test_going_back_with_a_claim_is_no_fall(scene: Scene) -> None:
    channel = holdfast.Channel(scene.channel, events=False)
    with channel.publisher(resume_from=scene.names[0], sweep=False):
        pass
    assert Claims(scene.channel).follows([scene.names[2], scene.names[0]]) is None
    assert Claims(scene.channel).follows([scene.names[2], scene.names[0], scene.names[2]]) is not None


def test_what_is_left_after_a_sweep_is_found(scene: Scene) -> None:
    (scene.channel / "staging" / "c000001-00000000").mkdir()
    (scene.channel / "consumers" / ".tmp-0").touch()
    (scene.channel / "broadcasts" / "c000001" / "step_9").symlink_to("../../versions/none")
    problems = scene.checker.swept()
    assert [problem for problem in problems if scene.names[0] in problem], "older than what retention keeps"
    assert any("staging" in problem for problem in problems)
    assert any(".tmp-0" in problem for problem in problems)
    assert any("leads nowhere" in problem for problem in problems)


def test_too_many_bytes_are_found(scene: Scene) -> None:
    (scene.directory(scene.names[0]) / "unlisted").write_bytes(bytes(500_000))
    assert any("are on disk" in problem for problem in scene.checker.while_they_run())


def test_an_unexpected_error_is_found(scene: Scene) -> None:
    scene.journal.say("error", code="errno_eio", kind="UnavailableError", text="…")
    assert any("unexpected error" in problem for problem in scene.checker.while_they_run())

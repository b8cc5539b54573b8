"""The publisher: what a call promises, what it refuses, and who may publish."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import holdfast
from holdfast import Channel, ConflictError, FencedError, IntegrityError, NotVisibleError, Retention, Term, UsageError
from holdfast.channel.checking import stable_text
from holdfast.channel.payload import Payload
from holdfast.channel.publisher import Publisher
from holdfast.channel.sources import BytesSource
from holdfast.core.names import STEP_MAX, Version
from holdfast.events import read_events
from tests.support.channels import Background, CutOff, Place, payload, until


def _listed(place: Place) -> set[str]:
    return {str(version) for version in place.channel().observer().versions()}


def _newest(place: Place) -> str:
    with place.channel().consumer("reader") as consumer:
        held = consumer.take(0.0)
        assert held is not None
        return place.read(held)


# Versions


def test_the_first_publisher_makes_the_channel_and_its_first_cycle(place: Place) -> None:
    with place.channel(run="run-1").publisher(sweep=False) as publisher:
        assert (publisher.cycle, publisher.last, publisher.starts_from) == (1, None, None)
        version = publisher.publish_payload(3, payload("three"))
        assert (version.cycle, version.step, version.attempt) == (1, 3, 0)
        assert publisher.last == version
    channel = place.channel()
    assert channel.open().run == "run-1"
    assert channel.observer().current() == version
    assert _newest(place) == "three"


def test_I2_equal_bytes_of_one_step_are_the_same_version(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        first = publisher.publish_payload(1, payload("one"))
        assert publisher.publish_payload(1, payload("one"), metadata={"again": True}) == first
        assert _listed(place) == {str(first)}
        assert place.channel().observer().versions() == {first}


def test_I2_other_bytes_of_one_step_are_a_new_version_with_a_new_name(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        first = publisher.publish_payload(1, payload("one"))
        second = publisher.publish_payload(1, payload("uno"))
        third = publisher.publish_payload(1, payload("one"))
        assert first < second < third
        assert len({first, second, third}) == 3
        assert _newest(place) == "one"


def test_a_step_lower_than_the_last_is_refused_and_nothing_is_lost(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        kept = publisher.publish_payload(5, payload("five"))
        with pytest.raises(UsageError) as caught:
            publisher.publish_payload(4, payload("four"))
        assert caught.value.code == "step_went_down"
        assert "resume_from" in caught.value.hint
        assert _listed(place) == {str(kept)}
        publisher.publish_payload(6, payload("six"))
    assert _newest(place) == "six"


def test_a_step_below_the_version_that_a_cycle_starts_from_is_refused(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        start = publisher.publish_payload(5, payload("five"))
    with place.channel().publisher(sweep=False, resume_from=start, term=_other_job()) as publisher:
        with pytest.raises(UsageError) as caught:
            publisher.publish_payload(4, payload("four"))
        assert caught.value.code == "step_went_down"
        publisher.publish_payload(5, payload("five once more"))


@pytest.mark.parametrize("step", [-1, STEP_MAX + 1, 2**70, 1.5, "3", None, True])
def test_a_step_that_is_none_is_refused_before_anything_is_written(place: Place, step: Any) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        with pytest.raises(UsageError) as caught:
            publisher.publish_payload(step, payload("bytes"))
        assert caught.value.code == "bad_step"
        assert _listed(place) == set()
        assert place.storage().list_garbage() == ()
        assert publisher.publish_payload(STEP_MAX, payload("bytes")).step == STEP_MAX


def _deep() -> dict[str, Any]:
    deep: dict[str, Any] = {}
    deep["itself"] = deep
    return deep


@pytest.mark.parametrize(
    "metadata",
    [
        {"x": object()},
        {"x": {1: {2: object()}}},
        {("a", "b"): 1},
        _deep(),
        {"x": "\ud800"},
        {"x": "y" * (2**20 + 1)},
        7,
    ],
    ids=["object", "nested", "key", "endless", "surrogate", "huge", "number"],
)
def test_metadata_that_is_not_json_is_refused_and_the_step_can_be_published(place: Place, metadata: Any) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        with pytest.raises(UsageError) as caught:
            publisher.publish_payload(1, payload("bytes"), metadata=metadata)
        assert caught.value.code in ("bad_metadata", "bad_manifest")
        assert _listed(place) == set()
        assert place.storage().list_garbage() == (), "nothing is left in staging/"
        publisher.publish_payload(1, payload("bytes"), metadata={"loss": 0.25, "tags": ["a", None, True]})
    with place.channel().consumer("reader") as consumer:
        held = consumer.take(0.0)
        assert held is not None
        assert held.metadata == {"loss": 0.25, "tags": ["a", None, True]}


@pytest.mark.parametrize(
    "names",
    [["../out.bin"], ["/etc/out.bin"], ["a//b"], ["a", "a"], ["a", "a/b"], ["manifest.json"], ["STABLE"], [""], []],
    ids=str,
)
def test_a_payload_that_cannot_be_a_version_is_refused(place: Place, names: list[str]) -> None:
    bad = Payload(files=tuple((name, BytesSource([b"x"])) for name in names), kind="test")
    with place.channel().publisher(sweep=False) as publisher:
        with pytest.raises(UsageError):
            publisher.publish_payload(1, bad)
        assert _listed(place) == set()
        assert place.storage().list_garbage() == ()
        publisher.publish_payload(1, payload("good"))


def test_a_publisher_does_nothing_before_it_is_opened_and_after_it_is_closed(place: Place) -> None:
    publisher = place.channel().publisher(sweep=False)
    with pytest.raises(UsageError) as caught:
        publisher.publish_payload(1, payload("early"))
    assert caught.value.code == "closed"
    publisher.close()
    opened = place.channel().publisher(sweep=False)
    opened.open()
    opened.publish_payload(1, payload("one"))
    opened.close()
    opened.close()
    for late in (lambda: opened.publish_payload(2, payload("late")), lambda: opened.publish(2, {"a": 1}), opened.open):
        with pytest.raises(UsageError) as caught:
            late()
        assert caught.value.code == "closed"
    assert _newest(place) == "one"


def test_an_unopened_publisher_closes_without_a_trace(place: Place) -> None:
    place.channel().publisher().close()
    assert place.storage().list("") == ()


# Tensors


def _torch() -> Any:
    return pytest.importorskip("torch")


BAD_STATE_DICTS: dict[str, tuple[Callable[[], dict[Any, Any]], str]] = {
    "empty": (dict, "empty_state_dict"),
    "meta": (lambda: {"a": _torch().empty(2, device="meta")}, "meta_tensor"),
    "dtype": (lambda: {"a": _torch().zeros(2, dtype=_torch().complex128)}, "unsupported_dtype"),
    "list": (lambda: {"a": [1, 2]}, "not_a_tensor"),
    "key": (lambda: {7: _torch().zeros(2)}, "bad_tensor_name"),
}


@pytest.mark.parametrize("kind", BAD_STATE_DICTS)
@pytest.mark.parametrize("wait", [True, False], ids=["now", "later"])
def test_tensors_that_cannot_be_published_are_refused_in_the_call(directory: Place, kind: str, wait: bool) -> None:
    make, code = BAD_STATE_DICTS[kind]
    state = make()
    with directory.channel().publisher(sweep=False) as publisher:
        with pytest.raises(UsageError) as caught:
            publisher.publish(1, state, wait=wait)
        assert caught.value.code == code
        with pytest.raises(UsageError) as caught:
            publisher.publish_adapter(1, state, {"peft_type": "LORA", "r": 4}, wait=wait)
        assert caught.value.code == code
        assert _listed(directory) == set()
        assert directory.storage().list_garbage() == ()
        publisher.publish(1, {"a": _torch().zeros(3)}, wait=True)


def test_tensors_with_strides_or_several_names_arrive_as_they_are(directory: Place) -> None:
    torch = _torch()
    from safetensors.torch import load_file

    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    other = torch.arange(8, dtype=torch.bfloat16).reshape(2, 4)
    state = {"turned": base.t(), "every other": other[:, ::2], "tied": base.t()}
    with directory.channel().publisher(sweep=False) as publisher:
        publisher.publish_adapter(1, state, {"peft_type": "LORA", "r": 4})
        with directory.channel().consumer("reader") as consumer:
            held = consumer.take(0.0)
            assert held is not None
            arrived = load_file(held.path / "adapter_model.safetensors")
    assert arrived.keys() == state.keys()
    assert all(torch.equal(arrived[name], state[name]) for name in state)


def test_tensors_that_reach_into_the_same_memory_are_refused_by_name(directory: Place) -> None:
    base = _torch().zeros(3, 4)
    with directory.channel().publisher(sweep=False) as publisher:
        with pytest.raises(UsageError) as caught:
            publisher.publish(1, {"whole": base, "row": base[1]})
        assert caught.value.code == "shared_tensors"
        assert "'whole'" in str(caught.value)
        assert "'row'" in str(caught.value)
        assert _listed(directory) == set()


def test_a_future_has_a_copy_of_the_tensors(directory: Place) -> None:
    torch = _torch()
    from safetensors.torch import load_file

    weights = torch.ones(1000)
    with directory.channel().publisher(sweep=False) as publisher:
        future = publisher.publish_adapter(1, {"w": weights}, {"peft_type": "LORA", "r": 1}, wait=False)
        weights.zero_()
        version = future.result(timeout=20)
        with directory.channel().consumer("reader") as consumer:
            held = consumer.take(0.0)
            assert held is not None
            assert held.name == version
            assert torch.equal(load_file(held.path / "adapter_model.safetensors")["w"], torch.ones(1000))


def test_one_publish_is_in_flight_at_most(directory: Place, room: pathlib.Path) -> None:
    (room / "payload").mkdir()
    (room / "payload" / "w.bin").write_bytes(b"one")
    going, gate = threading.Event(), threading.Event()

    def hold_up(done_bytes: int) -> None:
        going.set()
        assert gate.wait(20)

    with directory.channel().publisher(sweep=False) as publisher:
        first = publisher.publish_directory(1, room / "payload", wait=False, progress=hold_up)
        assert going.wait(20)
        second: list[Any] = []
        caller = threading.Thread(
            target=lambda: second.append(publisher.publish_directory(2, room / "payload", wait=False)), daemon=True
        )
        caller.start()
        caller.join(0.2)
        assert caller.is_alive(), "the second call waits for the first one's bytes"
        assert not first.done()
        gate.set()
        caller.join(20)
        assert first.result(timeout=20).step == 1
        assert second[0].result(timeout=20).step == 2


def test_an_error_in_the_background_is_raised_by_its_future_and_again_at_close(
    directory: Place, room: pathlib.Path
) -> None:
    source = room / "payload"
    source.mkdir()
    (source / "w.bin").write_bytes(b"one")
    publisher = directory.channel().publisher(sweep=False)
    publisher.open()
    publisher.publish_payload(5, payload("five"))
    future = publisher.publish_directory(4, source, wait=False)
    with pytest.raises(UsageError) as caught:
        future.result(timeout=20)
    assert caught.value.code == "step_went_down"
    publisher.publish_payload(6, payload("six"))
    with pytest.raises(UsageError) as caught:
        publisher.close()
    assert caught.value.code == "step_went_down"
    publisher.close()
    assert _newest(directory) == "six"
    with directory.channel().publisher(sweep=False, term=_other_job()):
        pass  # it had closed in order all the same


# Resuming


def _other_job(name: str = "other", number: int = 0) -> Term:
    return Term(job=name, round=number, nonce="0123456789abcdef")


def _three(place: Place) -> list[Version]:
    with place.channel().publisher(sweep=False) as publisher:
        return [publisher.publish_payload(step, payload(str(step))) for step in (4, 8, 12)]


@pytest.mark.parametrize("how", ["version", "name", "step", "held"])
def test_a_cycle_starts_from_the_version_that_it_resumes_from(place: Place, how: str) -> None:
    versions = _three(place)
    with place.channel().consumer("reader") as consumer:
        held = consumer.hold(versions[1])
        origin = {"version": versions[1], "name": str(versions[1]), "step": 8, "held": held}[how]
        with place.channel().publisher(sweep=False, resume_from=origin, term=_other_job()) as publisher:
            assert publisher.starts_from == versions[1]
            assert publisher.cycle == 2
            publisher.publish_payload(9, payload("nine"))
            newest = consumer.take(0.0)
            assert newest is not None
            assert newest.manifest.parent == str(versions[1])


@pytest.mark.parametrize(
    ("origin", "kind", "code"),
    [
        ("c000001-s00000005-00aaaaaa", NotVisibleError, "version_gone"),
        (5, NotVisibleError, "version_gone"),
        (-5, NotVisibleError, "version_gone"),
        ("../versions", UsageError, "bad_version_name"),
        ("", UsageError, "bad_version_name"),
        (1.5, UsageError, "bad_version_name"),
        (True, UsageError, "bad_version_name"),
    ],
)
def test_resuming_from_what_is_not_there_claims_nothing(
    place: Place, origin: Any, kind: type[Exception], code: str
) -> None:
    _three(place)
    with pytest.raises(kind) as caught:
        place.channel().publisher(sweep=False, resume_from=origin, term=_other_job()).open()
    assert getattr(caught.value, "code", None) == code
    observer = place.channel().observer()
    assert observer.cycles() == (1,)
    assert observer.consumers() == {}, "no hold is left behind"


def test_resuming_from_damaged_bytes_claims_nothing(directory: Place) -> None:
    versions = _three(directory)
    damaged = directory.path / "versions" / str(versions[2])
    (damaged / "manifest.json").write_bytes(b"{}")
    (damaged / "STABLE").write_bytes(stable_text(b"{}"))
    with pytest.raises(IntegrityError) as caught:
        directory.channel().publisher(sweep=False, resume_from=12, term=_other_job()).open()
    assert caught.value.code == "refused"
    assert directory.channel().observer().cycles() == (1,)


# Who may publish


def test_a_second_publisher_of_another_job_is_refused_while_the_first_is_alive(place: Place) -> None:
    with place.channel(lease_s=2.0).publisher(sweep=False) as first:
        with pytest.raises(ConflictError) as caught:
            place.channel(lease_s=2.0).publisher(sweep=False, term=_other_job()).open()
        assert caught.value.code == "publisher_alive"
        assert "take_over" in caught.value.hint
        first.publish_payload(1, payload("one"))


def test_one_process_has_one_publisher_of_a_channel(place: Place) -> None:
    with place.channel().publisher(sweep=False) as first:
        with pytest.raises(ConflictError) as caught:
            place.channel().publisher(sweep=False).open()
        assert caught.value.code == "publisher_alive"
        with pytest.raises(UsageError) as again:
            first.open()
        assert again.value.code == "already_open"
        first.publish_payload(1, payload("one"))
    with place.channel().publisher(sweep=False) as second:
        assert second.cycle == 2


def test_I8_take_over_fences_the_older_publisher(place: Place) -> None:
    with place.channel().publisher(sweep=False) as first, place.channel().consumer("reader") as consumer:
        first.publish_payload(1, payload("one"))
        held = consumer.take(0.0)
        assert held is not None
        with place.channel().publisher(sweep=False, term=_other_job(), take_over=True, resume_from=held) as second:
            for _ in range(2):
                with pytest.raises(FencedError) as caught:
                    first.publish_payload(2, payload("zombie"))
                assert caught.value.code == "fenced"
            second.publish_payload(2, payload("two"))
            newest = consumer.take(0.0)
            assert newest is not None
            assert place.read(newest) == "two"
            assert place.storage().list_garbage() == ()


def test_I8_a_publisher_whose_unfinished_publish_was_swept_by_its_successor_is_told_that_it_is_fenced(
    place: Place,
) -> None:
    second = place.channel().publisher(sweep=False, term=_other_job(), take_over=True)

    def is_replaced_meanwhile(done_bytes: int) -> None:
        second.open()
        with place.channel().sweeper() as sweeper:
            sweeper.sweep()

    with place.channel().publisher(sweep=False) as first, contextlib.closing(second):
        with pytest.raises(FencedError) as caught:
            first.publish_payload(1, payload("zombie"), progress=is_replaced_meanwhile)
        assert caught.value.code == "fenced"
        assert _listed(place) == set()


def test_I8_a_superseded_job_never_claims_again(place: Place) -> None:
    first = Term(job="first", round=0, nonce="1")
    with place.channel().publisher(sweep=False, term=first):
        pass
    with place.channel().publisher(sweep=False, term=_other_job()):
        pass
    for number in (0, 1):
        with pytest.raises(FencedError) as caught:
            place.channel().publisher(
                sweep=False, term=Term(job="first", round=number, nonce="2"), take_over=True
            ).open()
        assert caught.value.code == "superseded"


def test_a_higher_round_of_the_same_job_claims_at_once_and_a_lower_one_never(place: Place) -> None:
    terms = [Term(job="job", round=number, nonce=nonce) for number, nonce in ((1, "a"), (2, "b"), (1, "c"))]
    with (
        place.channel().publisher(sweep=False, term=terms[0]) as first,
        place.channel().publisher(sweep=False, term=terms[1]) as second,
    ):
        assert second.cycle == 2
        with pytest.raises(FencedError):
            first.publish_payload(1, payload("zombie"))
        with pytest.raises(FencedError) as caught:
            place.channel().publisher(sweep=False, term=terms[2]).open()
        assert caught.value.code == "superseded"


def test_of_many_publishers_at_once_one_claims_each_cycle(place: Place) -> None:
    place.channel().open(create=True)
    publishers = [
        place.channel().publisher(sweep=False, take_over=True, term=_other_job(f"job-{number}")) for number in range(6)
    ]
    ready = threading.Barrier(len(publishers))
    errors: list[BaseException] = []

    def opening(publisher: Publisher) -> None:
        ready.wait(20)
        try:
            publisher.open()
        except FencedError as error:  # it asked again, and saw that it had been passed
            errors.append(error)

    threads = [threading.Thread(target=opening, args=(publisher,)) for publisher in publishers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    cycles = [publisher.cycle for publisher in publishers if publisher.cycle]
    assert sorted(cycles) == list(range(1, len(cycles) + 1)), "each cycle has one publisher, none is left out"
    assert len(cycles) + len(errors) == len(publishers)
    for publisher in publishers:
        if publisher.cycle == len(cycles):
            publisher.publish_payload(1, payload("the last one"))
        elif publisher.cycle:
            with pytest.raises(FencedError):
                publisher.publish_payload(1, payload("fenced"))
    for publisher in publishers:
        publisher.close()
    assert _newest(place) == "the last one"


def test_a_closed_publisher_is_followed_at_once(place: Place) -> None:
    with place.channel(lease_s=300.0).publisher(sweep=False, term=_other_job("a")):
        pass
    with place.channel(lease_s=300.0).publisher(sweep=False, term=_other_job("b")) as second:
        assert second.cycle == 2


# Options that make no sense


@pytest.mark.parametrize(
    "options",
    [
        {"keep_recent": 0},
        {"keep_recent": -1},
        {"keep_recent": 1.5},
        {"keep_recent": "2"},
        {"keep_every": 0},
        {"keep_every": 2.5},
        {"min_age_s": -1.0},
        {"min_age_s": math.nan},
        {"min_age_s": "1"},
        {"max_bytes": 0},
        {"max_bytes": "1 GB"},
    ],
    ids=str,
)
def test_retention_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        Retention(**options)
    assert caught.value.code == "bad_retention"
    assert next(iter(options)) in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"lease_s": 0.0},
        {"lease_s": -1.0},
        {"lease_s": math.nan},
        {"lease_s": math.inf},
        {"lease_s": "60"},
        {"lease_s": 10.0, "visibility_bound_s": 10.0},
        {"visibility_bound_s": -1.0},
        {"visibility_bound_s": math.nan},
        {"visibility_bound_s": math.inf},
    ],
    ids=str,
)
def test_a_lease_or_bound_that_makes_no_sense_is_refused(place: Place, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        place.channel(**options)
    assert place.storage().list("") == ()


def test_a_wait_that_is_over_names_who_is_waited_for(place: Place) -> None:
    """A publisher of another job that is silent, but not for a lease yet."""
    first = place.channel(lease_s=300.0).publisher(sweep=False, term=_other_job("a"))
    first.open()
    try:
        with pytest.raises(holdfast.TimedOutError) as caught:
            place.channel(lease_s=300.0).publisher(sweep=False, term=_other_job("b"), wait_s=0.0).open()
        assert caught.value.code == "claim_timed_out"
        assert "cycle 1 (job a)" in str(caught.value)
    finally:
        first.close()


# Room


def test_publish_waits_for_room_and_goes_on_when_a_version_is_released(place: Place) -> None:
    channel = place.channel()
    with (
        channel.publisher(Retention(keep_recent=1, max_bytes=25)) as publisher,
        place.channel().consumer("reader") as consumer,
    ):
        publisher.publish_payload(1, payload("1" * 10))
        held = until(lambda: consumer.take(0.1))
        publisher.publish_payload(2, payload("2" * 10))
        done = threading.Thread(target=lambda: publisher.publish_payload(3, payload("3" * 10)), daemon=True)
        done.start()
        done.join(0.3)
        assert done.is_alive(), "step 1 is held, step 2 is the newest: there is no room"
        held.release()
        done.join(20)
        assert not done.is_alive()
        assert {version.step for version in channel.observer().versions()} in ({2, 3}, {3})


def test_publish_without_room_fails_and_names_the_holders(place: Place) -> None:
    channel = place.channel()
    with (
        channel.publisher(Retention(keep_recent=1, max_bytes=25), room_timeout_s=0.0) as publisher,
        place.channel().consumer("rollout-7") as consumer,
    ):
        first = publisher.publish_payload(1, payload("1" * 10))
        held = until(lambda: consumer.take(0.1))
        publisher.publish_payload(2, payload("2" * 10))
        with pytest.raises(holdfast.UnavailableError) as caught:
            publisher.publish_payload(3, payload("3" * 10))
        assert caught.value.code == "no_room"
        assert f"rollout-7 holds {first}" in str(caught.value)
        assert {version.step for version in channel.observer().versions()} == {1, 2}
        held.release()


def test_what_can_never_fit_is_refused_at_once(place: Place) -> None:
    with place.channel().publisher(Retention(max_bytes=25), sweep=False) as publisher:
        with pytest.raises(UsageError) as caught:
            publisher.publish_payload(1, payload("1" * 26))
        assert caught.value.code == "over_max_bytes"
        publisher.publish_payload(1, payload("1" * 25))


@pytest.mark.parametrize("gone", [False, True])
def test_a_claimant_that_was_taken_for_dead_before_its_claim_looks_again_at_what_it_starts_from(
    place: Place, gone: bool, tmp_path: pathlib.Path
) -> None:
    link = CutOff(place.storage())
    with Channel(link, lease_s=1.2).publisher(sweep=False, term=Term(job="other", round=0, nonce="1")) as dead:  # type: ignore[arg-type]
        versions = [dead.publish_payload(step, payload(str(step))) for step in (1, 2)]
        link.cut()
        claimant = place.channel(lease_s=1.2, events=tmp_path).publisher(
            sweep=False, resume_from=versions[0], wait_s=60.0
        )
        opening = Background(claimant.open)
        opening.start()
        until(lambda: any(e.event == "waiting" for file in tmp_path.iterdir() for e in read_events(file)))
        (life,) = until(lambda: [str(life) for life, seen in _consumers(place).items() if seen.record.holds])
        if gone:
            place.storage().retire_tree(str(versions[0]), "0123456789abcdef")
        party = msgspec.to_builtins(place.channel().party())
        says = {"format": 1, "beat": 1, "cycle": 1, "expired": [life], "party": party}
        place.storage().create("sweepers/000001-0123abcd.json", json.dumps(says).encode())
        if gone:
            with pytest.raises(NotVisibleError) as caught:
                opening.result()
            assert caught.value.code == "version_gone"
            return
        opening.result()
        assert (claimant.cycle, claimant.starts_from) == (2, versions[0])
        claimant.close()


def _consumers(place: Place) -> dict[Any, Any]:
    return place.channel().observer().consumers()

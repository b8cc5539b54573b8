"""Nodes of an older and of a newer Holdfast in one job; and records that are nobody's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.membership import Beat, Control, Policy, Wish, decode, encode, encode_over
from holdfast.errors import IntegrityError
from holdfast.rendezvous.founding import ATTEMPTS
from holdfast.rendezvous.kv import Cell
from tests.support.clerks import POLICY, RUN, CheckedStore, Crew, One

LATER = {"colour": "blue", "fabric": {"planes": [1, 2.50, None]}, "tiers": 12345678901234567890}
# What an imagined schema 0 did not have yet.
SINCE = ("schema", "host", "pid", "infra_rank", "domain", "group", "group_size", "version", "drain_ready", "reason")


class Newer(CheckedStore):
    """The client of a Holdfast to come: schema 2, and fields in every record that we do not know."""

    def compare_and_set(self, cell: str, expected: int, value: bytes) -> Cell:
        ours = json.loads(value)
        ours["policy"] |= LATER
        return super().compare_and_set(cell, expected, json.dumps({**ours, **LATER, "schema": 2}).encode())

    def put(self, values: Mapping[str, bytes]) -> None:
        super().put({key: self._later(value) for key, value in values.items()})

    def put_listed(self, collection: str, name: str, value: bytes) -> None:
        super().put_listed(collection, name, self._later(value))

    def _later(self, value: bytes) -> bytes:
        return json.dumps({**json.loads(value), **LATER, "schema": 2}).encode()


class Older(CheckedStore):
    """The client of a Holdfast before ours: its node and its beats lack what came later."""

    def put_listed(self, collection: str, name: str, value: bytes) -> None:
        old = {key: told for key, told in json.loads(value).items() if key not in SINCE}
        super().put_listed(collection, name, json.dumps(old).encode())


class Garbling(CheckedStore):
    """The client of a coordinator whose plans are garbage where `what` says so."""

    what = ""

    def put(self, values: Mapping[str, bytes]) -> None:
        super().put({key: b'{"round":"\xff' if self.what in key else value for key, value in values.items()})


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew()
    yield made
    made.close()


def add(crew: Crew, kind: type[CheckedStore], name: str, policy: Policy = POLICY) -> One:
    crew.ones.append(One(kind(crew.server, RUN), name, policy=policy))
    return crew.ones[-1]


def raw_control(crew: Crew) -> dict[str, Any]:
    cell = crew.store.read(crew.keys.control)
    assert cell is not None
    found: dict[str, Any] = json.loads(cell.value)
    return found


@pytest.mark.parametrize("first", ["older", "ours", "newer"])
def test_they_train_together_whoever_coordinates(crew: Crew, first: str) -> None:
    kinds = {"ours": CheckedStore, "older": Older, "newer": Newer}
    names = sorted(kinds, key=lambda kind: kind != first)
    ones = {}
    for number, name in enumerate(names):
        ones[name] = add(crew, kinds[name], f"n{number}", msgspec.structs.replace(POLICY, min_nodes=3, max_nodes=3))
        if number == 0:
            crew.until(lambda: crew.server.cells)
    crew.until(lambda: all(one.trains for one in crew.ones), "round 1 does not begin")
    assert crew.coordinator is ones[first]
    assert [ones[name].rank for name in names] == [0, 1, 2]
    ones[names[2]].fail()
    crew.train(2, *crew.ones)
    for one in crew.ones:
        one.finish()
    crew.until(lambda: all(one.clerk.over for one in crew.ones))
    assert [one.code for one in crew.ones] == [0, 0, 0]


def test_a_node_of_an_older_one_takes_a_lost_ones_place(crew: Crew) -> None:
    zero, one = add(crew, CheckedStore, "n0"), add(crew, Newer, "n1")
    crew.until(lambda: zero.trains and one.trains)
    old = add(crew, Older, "n2")
    lost, stays = (one, zero) if crew.coordinator is zero else (zero, one)
    rank = lost.rank
    lost.driven = False
    crew.train(2, stays, old)
    assert old.rank == rank


def test_what_a_newer_coordinator_wrote_into_control_is_kept(crew: Crew) -> None:
    newer = add(crew, Newer, "n0")
    crew.until(lambda: crew.server.cells)
    ours, spare = add(crew, CheckedStore, "n1"), add(crew, CheckedStore, "n2")
    crew.until(lambda: len([one for one in crew.ones if one.trains]) == 2)
    assert crew.coordinator is newer
    newer.driven = False
    crew.until(lambda: crew.control.term >= 2 and ours.trains and spare.trains, "nobody takes over")
    trained = [one for one in (ours, spare) if one.begun]
    trained[0].fail()  # the successor writes further rounds
    crew.until(lambda: all(one.trains for one in trained) and crew.control.restarts > 0)
    found = raw_control(crew)
    assert found["schema"] == 2
    assert {key: found[key] for key in LATER} == LATER
    assert {key: found["policy"][key] for key in LATER} == LATER
    assert crew.control.term >= 2


def test_ending_an_older_attempt_keeps_what_it_wrote(crew: Crew) -> None:
    alone = Policy(lease_s=0.2)
    crew.ones.append(One(Newer(crew.server, RUN), "n0", policy=alone))
    crew.until(lambda: crew.ones[0].trains)
    crew.add("n1", policy=alone, attempt="next")
    crew.until(lambda: crew.ones[0].clerk.over)
    found = raw_control(crew)
    assert found["outcome"]["ending"] == "superseded"
    assert {key: found[key] for key in LATER} == LATER


CONTROL = Control(run="r", attempt="0", job="j", policy=Policy(max_nodes=4), term=3, coordinator="a.b", nonce="new")


def test_unknown_fields_stay_as_they_are_written() -> None:
    big = b"7" * 40
    policy = b'{"max_nodes":2 , "more":"\\u00e4"}'
    stands = b'{"later": 1.50, "big":%s, "term":1, "policy":%s,"nonce":"old"}' % (big, policy)
    value = encode_over(CONTROL, stands, key="control")
    assert decode(value, Control, key="control") == CONTROL
    assert b'"later":1.50' in value
    assert b'"big":' + big in value
    assert b'"more":"\\u00e4"' in value
    assert encode_over(CONTROL, value, key="control") == value
    assert json.loads(encode_over(CONTROL, encode(CONTROL), key="control")) == json.loads(encode(CONTROL))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = ("schema", "node", "incarnation", "count", "state", "plan", "round", "wish", "member", "code", "job", "first")
FIELDS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6)
GARBAGE = (
    st.binary(max_size=30)
    | JSON.map(lambda told: json.dumps(told).encode())
    | FIELDS.map(lambda told: json.dumps(told).encode())
)


@given(GARBAGE)
def test_control_is_replaced_or_refused(stands: bytes) -> None:
    try:
        value = encode_over(CONTROL, stands, key="control")
    except IntegrityError:
        return
    assert decode(value, Control, key="control") == CONTROL


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(["nodes", "beats", "requests", "answers"]), GARBAGE), max_size=30))
def test_a_job_goes_on_whatever_else_is_in_its_store(planted: list[tuple[str, bytes]]) -> None:
    crew = Crew()
    try:
        crew.add("n0", "n1", "n2")
        for number, (kind, data) in enumerate(planted):
            collection = getattr(crew.keys, kind)
            crew.store.put_listed(collection, f"x{number}.0", data)
            crew.store.put_listed(collection, f"x{number % 3}", data)
            if kind == "nodes":
                crew.store.put_listed(ATTEMPTS, f"attempt-{number}", b"{" + data)
        crew.until(lambda: len([one for one in crew.ones if one.trains]) == 2, "round 1 does not begin")
        trained = [one for one in crew.ones if one.trains]
        trained[1].fail()
        crew.train(2, *trained)
        crew.ask(Wish.STOP)
        crew.until(lambda: all(one.clerk.over for one in crew.ones))
        assert [one.code for one in crew.ones] == [0, 0, 0]
    finally:
        crew.close()


@settings(max_examples=10)
@given(GARBAGE)
def test_a_coordinators_beat_that_is_garbage_is_no_beat(data: bytes) -> None:
    crew = Crew()
    try:
        ones = crew.add("n0", "n1", policy=msgspec.structs.replace(POLICY, min_nodes=1, spares=0))
        crew.until(lambda: all(one.trains for one in ones))
        frozen = crew.coordinator
        frozen.driven = False
        stays = ones[1 - ones.index(frozen)]
        crew.store.put_listed(crew.keys.beats, frozen.member, data)
        crew.until(
            lambda: stays.code is not None or (crew.control.term >= 2 and crew.control.round >= 2 and stays.trains)
        )
        assert stays.code is None, stays.reason
    finally:
        crew.close()


def plant_control(crew: Crew) -> None:
    cell = crew.store.read(crew.keys.control)
    assert cell is not None
    crew.store.compare_and_set(crew.keys.control, cell.revision, b'{"term":')


def plant_roster(crew: Crew) -> None:
    """And the coordinator is lost, so that its successors read it."""
    with crew.server.lock:
        keys = [key for key in crew.server.plain if key.endswith("/roster")]
    assert keys
    crew.store.put({key.partition("\n")[2]: b"[]" for key in keys})
    crew.coordinator.driven = False


@pytest.mark.parametrize("plant", [plant_control, plant_roster])
def test_what_cannot_be_read_ends_everybody_with_an_error(crew: Crew, plant: Callable[[Crew], None]) -> None:
    crew.add("n0", "n1", "n2")
    crew.until(lambda: len([one for one in crew.ones if one.trains]) == 2)
    with crew.server.lock:
        beats = {name: decode(data, Beat, key=name) for name, data in crew.server.listed[f"{RUN}\n0/beats"].items()}
    assert len(beats) == 3
    plant(crew)
    there = [one for one in crew.ones if one.driven]
    crew.until(lambda: all(one.code == 1 for one in there), "nobody says so")
    assert all(one.clerk.rings for one in there)
    assert all("control:" in one.reason or "/roster:" in one.reason for one in there), [one.reason for one in there]


@pytest.mark.parametrize("what", ["/head", "/seats/"])
def test_a_plan_that_cannot_be_read_is_said(crew: Crew, what: str) -> None:
    coordinator = add(crew, Garbling, "n0")
    assert isinstance(coordinator.store, Garbling)
    coordinator.store.what = what
    crew.until(lambda: crew.server.cells)
    crew.add("n1")
    crew.until(lambda: all(one.code == 1 for one in crew.ones), "nobody says so")
    assert all(what in one.reason for one in crew.ones), [one.reason for one in crew.ones]

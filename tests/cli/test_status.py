"""`holdfast status`: the sweeper's own reasons, and who is alive as far as it was watched."""

from __future__ import annotations

import itertools
import json
import pathlib
import threading

import msgspec

from holdfast import Channel, Retention
from holdfast.channel.status import Status, StatusReader
from holdfast.core.records import ConsumerRecord, Party, encode
from tests.cli.conftest import Filled, Run, fill
from tests.support.channels import payload, until


def _status(run: Run, filled: Filled, *words: object, code: int = 0) -> Status:
    done = run("status", filled.path, *words, "--json")
    assert done.code == code, done
    return msgspec.json.decode(done.out, type=Status)


def test_the_reasons_are_those_of_the_sweeper(run: Run, filled: Filled) -> None:
    with filled.channel.consumer("rollout-0", stage=None) as consumer:
        consumer.hold(filled.versions[0])
        assert run("pin", filled.path, 2).code == 0
        now = _status(run, filled)
        with filled.channel.sweeper() as sweeper:
            plan = sweeper.plan()
    assert {row.version: (row.stays, row.reason) for row in now.versions} == {
        name: (verdict.stays, verdict.reason) for name, verdict in plan.items()
    }
    assert now.retention_of is None


def test_what_goes_next_follows_the_retention_of_the_working_sweeper(run: Run, filled: Filled) -> None:
    with filled.channel.sweeper(Retention(keep_recent=1, keep_every=2, min_age_s=900)) as sweeper:
        sweeper.start()
        name = until(lambda: next((path.stem for path in (filled.path / "sweepers").glob("*.json")), None))
        now = _status(run, filled)
        text = run("status", filled.path).out
    assert now.retention_of == name
    assert now.retention == {"keep_recent": 1, "keep_every": 2, "min_age_s": 900.0, "max_bytes": None}
    assert [row.stays for row in now.versions] == [True, False, True, False]
    assert now.versions[1].reason == "goes: nobody holds it and newer versions are kept, once it is 900 s old"
    assert f"1 newest, every 2 steps, younger than 900 s (sweeper {name})" in text


def test_it_says_who_serves_and_holds_what_and_how_far_behind(run: Run, filled: Filled) -> None:
    with filled.channel.consumer("rollout-0", stage=None) as consumer:
        held = consumer.hold(filled.versions[1])
        held.acknowledge()
        now = _status(run, filled)
        text = run("status", filled.path).out
    (one,) = now.consumers
    assert (one.name, one.serving, one.holds) == ("rollout-0", [filled.versions[1]], [filled.versions[1]])
    assert (one.behind_versions, one.behind_steps, one.outside_lineage) == (2, 2, False)
    line = next(line for line in text.splitlines() if line.startswith("rollout-0"))
    assert line.split("  ")[:1] == ["rollout-0"]
    assert "c1 step 2" in line
    assert "2 (2 steps)" in line


def test_a_consumer_left_behind_by_a_rewind_is_outside_the_lineage(run: Run, filled: Filled) -> None:
    with filled.channel.consumer("rollout-0", stage=None) as consumer:
        consumer.hold(filled.versions[3]).acknowledge()
        with filled.channel.publisher(resume_from=filled.versions[1], sweep=False):
            (one,) = (each for each in _status(run, filled).consumers if each.name == "rollout-0")
    assert (one.outside_lineage, one.behind_versions) == (True, None)


def test_a_refusal_of_the_newest_version_needs_a_person(run: Run, filled: Filled) -> None:
    with filled.channel.consumer("rollout-0", stage=None) as consumer:
        consumer.hold(filled.versions[3]).reject("the engine\x1b[31m said no")
        now = _status(run, filled, code=3)
        done = run("status", filled.path)
    assert now.problems == ["rollout-0 refuses the newest version: the engine\x1b[31m said no"]
    assert done.code == 3
    assert "! rollout-0 refuses the newest version: the engine\\x1b[31m said no" in done.out


def test_an_unreadable_file_needs_a_person_and_keeps_everything(run: Run, filled: Filled) -> None:
    filled.plant("consumers/odd.000001-00000000.json", b"\xff\x00")
    now = _status(run, filled, code=3)
    assert now.consumers[0].life.state == "unreadable"
    assert all(row.stays for row in now.versions)
    filled.plant("cycles/000002.json", b"[]")
    now = _status(run, filled, code=3)
    assert "the claim of cycle 2 cannot be read: nothing is swept" in now.problems
    assert now.publisher is not None
    assert (now.publisher.cycle, now.publisher.job) == (2, None)


def test_older_readers_are_listed_as_unprotected(run: Run, filled: Filled) -> None:
    filled.plant("broadcasts/c000001/LOADED_STEP_rank0", b"3\n")
    filled.plant("broadcasts/c000001/LOADED_STEP_rank1", b"77")
    now = _status(run, filled)
    assert [(one.file, one.step, one.version) for one in now.readers] == [
        ("LOADED_STEP_rank0", 3, filled.versions[2]),
        ("LOADED_STEP_rank1", 77, None),
    ]
    assert "unprotected" in run("status", filled.path).out


def test_a_version_that_is_announced_says_so(run: Run, filled: Filled) -> None:
    record = {
        "format": 1,
        "beat": 1,
        "cycle": 1,
        "tombstones": [filled.versions[0]],
        "party": {"host": "h", "device": "d"},
    }
    filled.plant("sweepers/000001-0a1b2c3d.json", json.dumps(record).encode())
    now = _status(run, filled)
    assert now.versions[-1].tombstoned_by == ["000001-0a1b2c3d"]
    line = next(line for line in run("status", filled.path).out.splitlines() if line.startswith(filled.versions[0]))
    assert line.split()[1] == "announced"


def test_one_look_knows_nobody_alive_and_watching_does(tmp_path: pathlib.Path) -> None:
    """The beats are written by this test, so that it alone decides when they change."""
    path = tmp_path / "c"
    channel = Channel(path, lease_s=3600)
    fill(path, 1)
    numbers = itertools.count(1)

    def beat() -> None:
        record = ConsumerRecord(beat=next(numbers), party=Party(host="h", device="d"))
        channel.claims.replace("consumers/rollout-0.000001-00000000.json", encode(record))

    beat()
    reader = StatusReader(channel)
    assert reader.look().consumers[0].life.state == "unknown"
    assert reader.look().consumers[0].life.state == "unknown"
    beat()
    assert reader.look().consumers[0].life.state == "beats"


def test_silence_for_a_lease_counts_as_gone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "c"
    with Channel(path).publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("1"))
    (path / "cycles" / "000001.beat").write_bytes(b'{"format":1,"cycle":1,"beat":3,"closed":false}\n')
    reader = StatusReader(Channel(path, lease_s=0.4))
    tick = threading.Event()

    def silent() -> Status | None:
        tick.wait(0.02)
        now = reader.look()
        assert now.publisher is not None
        return now if now.publisher.life.state == "silent" else None

    now = until(silent)
    assert now.watched_s >= 0.4
    assert now.publisher.life.text.endswith("counts as gone")


def test_watching_for_a_while_prints_once(run: Run, filled: Filled) -> None:
    now = _status(run, filled, "--for", 0.2, "--every", 0.05)
    assert now.watched_s >= 0.15


def test_a_channel_that_nobody_has_claimed_has_a_status(run: Run, tmp_path: pathlib.Path) -> None:
    Channel(tmp_path / "c").open(create=True)
    done = run("status", tmp_path / "c")
    assert done.code == 0
    assert "nobody has claimed the channel yet" in done.out


def test_many_versions_are_not_all_printed(run: Run, tmp_path: pathlib.Path) -> None:
    many = fill(tmp_path / "c", *range(1, 26))
    short, long = run("status", many.path).out, run("status", many.path, "--all").out
    assert "… and 5 older ones, 5 of which go next (--all lists them)" in short
    assert many.versions[0] not in short
    assert many.versions[0] in long


def test_looking_again_and_again_needs_a_time_between(run: Run, filled: Filled) -> None:
    assert run("status", filled.path, "--every", 0).code == 2

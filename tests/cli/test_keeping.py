"""`holdfast pin`, `unpin` and `sweep`."""

from __future__ import annotations

import pathlib
from typing import Any

import msgspec
import pytest

from holdfast import Channel, Retention
from holdfast.cli.schema import Pinned, SweepDone
from holdfast.core.records import ConsumerRecord, Party, SweeperRecord, encode
from tests.cli.conftest import Filled, Run, fill
from tests.support.channels import until


def _there(filled: Filled) -> list[str]:
    return sorted(path.name for path in (filled.path / "versions").iterdir())


def _tree(path: pathlib.Path) -> dict[str, bytes]:
    return {str(found.relative_to(path)): found.read_bytes() for found in path.rglob("*") if found.is_file()}


def _sweeper(filled: Filled, **fields: Any) -> bytes:
    return encode(SweeperRecord(beat=1, cycle=1, party=filled.channel.party(), **fields))


def test_a_pinned_version_stays_until_it_is_unpinned(run: Run, filled: Filled) -> None:
    done = run("pin", filled.path, 1, "--json")
    assert msgspec.json.decode(done.out, type=Pinned) == Pinned(
        channel=str(filled.path), version=filled.versions[0], pinned=True, changed=True
    )
    assert run("pin", filled.path, 1, "--json").data["changed"] is False
    assert run("sweep", filled.path, "--keep-recent", 1).code == 0
    assert _there(filled) == [filled.versions[0], filled.versions[3]]
    assert run("unpin", filled.path, 1).out == f"{filled.versions[0]} is not pinned any more\n"
    assert run("unpin", filled.path, 1).out == f"{filled.versions[0]} was not pinned\n"
    assert run("sweep", filled.path, "--keep-recent", 1).code == 0
    assert _there(filled) == filled.versions[3:]


def test_a_pin_after_an_announcement_says_that_it_may_be_late(run: Run, filled: Filled) -> None:
    announcement = filled.plant("sweepers/000001-0a1b2c3d.json", _sweeper(filled, tombstones=(filled.versions[1],)))
    done = run("pin", filled.path, 2, "--json")
    assert (done.code, done.data["error"]["code"]) == (4, "announced")
    assert done.data["error"]["fields"]["sweepers"] == ["000001-0a1b2c3d"]
    announcement.write_bytes(_sweeper(filled))  # it saw the pin at its second look
    done = run("pin", filled.path, 2)
    assert (done.code, done.out) == (0, f"{filled.versions[1]} was pinned already\n")


def test_a_pin_beside_an_unreadable_sweeper_says_so(run: Run, filled: Filled) -> None:
    filled.plant("sweepers/000001-0a1b2c3d.json", b"{")
    done = run("pin", filled.path, 2, "--json")
    assert (done.code, done.data["error"]["code"]) == (4, "sweeper_unreadable")


def test_the_pin_of_a_version_that_is_gone_can_be_taken_away(run: Run, filled: Filled) -> None:
    pin = filled.plant("pins/c000001-s00000009-00abcdef", b"")
    assert run("pin", filled.path, "c000001-s00000009-00abcdef").code == 2
    assert run("unpin", filled.path, "c000001-s00000009-00abcdef").code == 0
    assert not pin.exists()


def test_sweep_without_options_keeps_the_whole_lineage(run: Run, filled: Filled) -> None:
    with Channel(filled.path).publisher(resume_from=filled.versions[1], sweep=False) as publisher:
        directory = filled.path.parent / "d"
        directory.mkdir()
        (directory / "w.bin").write_bytes(b"5")
        newest = str(publisher.publish_directory(5, directory))
    done = run("sweep", filled.path, "--json")
    swept = msgspec.json.decode(done.out, type=SweepDone)
    assert [row.version for row in swept.removed] == filled.versions[2:]
    assert {row.reason for row in swept.removed} == {"goes: outside the lineage of cycle 2"}
    assert _there(filled) == [*filled.versions[:2], newest]
    assert "every version of the lineage stays" in done.err


def test_sweep_refuses_where_everything_would_be_outside_the_lineage(run: Run, filled: Filled) -> None:
    with Channel(filled.path).publisher(sweep=False):
        done = run("sweep", filled.path, "--json")
        assert (done.code, done.data["error"]["code"]) == (2, "empty_lineage")
        assert _there(filled) == filled.versions
        assert run("sweep", filled.path, "--keep-recent", 1).code == 0
    assert _there(filled) == []


def test_a_dry_run_changes_nothing_and_says_what_would_go(run: Run, filled: Filled) -> None:
    before = _tree(filled.path)
    done = run("sweep", filled.path, "--keep-recent", 2, "--dry-run", "--json")
    assert [row["version"] for row in done.data["removed"]] == filled.versions[:2]
    assert [row["version"] for row in done.data["stays"]] == filled.versions[2:]
    assert _tree(filled.path) == before


def test_sweep_says_what_it_removed_and_why_the_rest_stays(run: Run, filled: Filled) -> None:
    with filled.channel.consumer("rollout-0", stage=None) as consumer:
        consumer.hold(filled.versions[0])
        done = run("sweep", filled.path, "--keep-recent", 1, "--keep-every", 2)
    lines = [line.split(maxsplit=2) for line in done.out.splitlines()[1:]]
    assert [(version, result) for version, result, _ in lines] == [
        (filled.versions[3], "stays"),
        (filled.versions[1], "stays"),
        (filled.versions[0], "stays"),
        (filled.versions[2], "removed"),
    ]
    assert [reason.partition(".")[0] for _, _, reason in lines] == [
        "kept: a fresh consumer would be given it",
        "kept: every 2 steps",
        "held by rollout-0",
        "goes: nobody holds it and newer versions are kept",
    ]


def test_sweep_removes_what_a_crash_left_behind(run: Run, filled: Filled) -> None:
    filled.plant("staging/c000001-0badcafe/w.bin", b"half")
    filled.plant("staging/retired-00/w.bin", b"half")
    filled.plant("cycles/.tmp-0123456789abcdef", b"half")
    done = run("sweep", filled.path, "--lease", 1, "--json")
    assert done.data["leftovers"] == ["c000001-0badcafe"]  # its publisher has left; the others may be at work
    done = run("sweep", filled.path, "--lease", 1, "--thorough", "--json")
    assert done.data["leftovers"] == ["cycles/.tmp-0123456789abcdef", "retired-00"]
    assert list((filled.path / "staging").iterdir()) == []


def test_sweep_leaves_the_work_to_a_sweeper_that_is_there(run: Run, filled: Filled) -> None:
    with filled.channel.sweeper(Retention(keep_recent=4)) as other:
        other.start()
        name = until(lambda: next((path.stem for path in (filled.path / "sweepers").glob("*.json")), None))
        done = run("sweep", filled.path, "--keep-recent", 1, "--json")
        assert (done.code, done.data["error"]["code"]) == (4, "sweeper_at_work")
        assert name in done.data["error"]["message"]
        assert run("sweep", filled.path, "--keep-recent", 1, "--dry-run").code == 0
    assert _there(filled) == filled.versions


def test_a_thorough_sweep_finds_out_who_is_dead(run: Run, filled: Filled) -> None:
    holder = encode(ConsumerRecord(beat=1, holds=(filled.versions[0],), party=filled.channel.party()))
    filled.plant("consumers/gone.000001-00000000.json", holder)
    filled.plant("sweepers/000001-0a1b2c3d.json", _sweeper(filled))
    assert run("sweep", filled.path, "--keep-recent", 1, "--lease", 1).code == 4
    done = run("sweep", filled.path, "--keep-recent", 1, "--lease", 1, "--thorough", "--json")
    assert done.code == 0
    assert _there(filled) == filled.versions[3:]
    assert filled.channel.observer().consumers() == {}


def test_what_is_young_stays_until_it_was_watched_for_long_enough(run: Run, filled: Filled) -> None:
    done = run("sweep", filled.path, "--keep-recent", 1, "--min-age", 3600, "--dry-run", "--json")
    assert {row["reason"] for row in done.data["stays"][:3]} == {"kept: younger than 3600 s"}
    done = run("sweep", filled.path, "--keep-recent", 1, "--min-age", 0.3, "--json")
    assert [row["version"] for row in done.data["removed"]] == filled.versions[:3]


def test_claims_may_lie_elsewhere(run: Run, tmp_path: pathlib.Path) -> None:
    claims = tmp_path / "claims"
    with Channel(tmp_path / "c", claims=claims).publisher(sweep=False):
        pass
    record = SweeperRecord(beat=1, cycle=1, party=Party(host="h", device="d"))
    (claims / "sweepers" / "000001-0a1b2c3d.json").write_bytes(encode(record))
    done = run("status", tmp_path / "c", "--json")
    assert (done.code, done.data["error"]["code"]) == (75, "no_directory")
    done = run("status", tmp_path / "c", "--claims", claims, "--json")
    assert [one["sweeper"] for one in done.data["sweepers"]] == ["000001-0a1b2c3d"]


@pytest.mark.parametrize("words", [("--keep-recent", 0), ("--keep-every", 0), ("--min-age", -1), ("--lease", 0)])
def test_wrong_retention_is_an_error_of_the_call(run: Run, filled: Filled, words: tuple[object, ...]) -> None:
    assert run("sweep", filled.path, *words).code == 2
    assert _there(filled) == filled.versions


def test_an_empty_channel_is_swept_in_vain(run: Run, tmp_path: pathlib.Path) -> None:
    empty = fill(tmp_path / "c")
    done = run("sweep", empty.path)
    assert (done.code, done.out) == (0, "no versions\n")

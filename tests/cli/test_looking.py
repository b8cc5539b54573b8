"""`holdfast ls`, `show` and `verify`."""

from __future__ import annotations

import msgspec
import pytest
from rich.cells import cell_len

from holdfast.cli.schema import Listing, Shown, Verified
from tests.cli.conftest import Filled, Run, fill


def test_ls_lists_every_version_newest_first(run: Run, filled: Filled) -> None:
    done = run("ls", filled.path)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["VERSION", "STEP", "CYCLE", "KIND", "SIZE", "CREATED", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == filled.versions[::-1]
    assert lines[1].endswith("newest")
    assert done.err == ""


def test_ls_tells_what_holds_and_pins_and_dooms_a_version(run: Run, filled: Filled) -> None:
    oldest, second, third, _ = filled.versions
    with filled.channel.consumer("rollout-0", stage=None) as consumer:
        held = consumer.hold(oldest)
        assert run("pin", filled.path, second).code == 0
        filled.plant("sweepers/000001-0a1b2c3d.json", _sweeper(third))
        done = run("ls", filled.path, "--json")
        held.release()
    rows = {row.version: row for row in msgspec.json.decode(done.out, type=Listing).versions}
    assert [life.partition(".")[0] for life in rows[oldest].holders] == ["rollout-0"]
    assert rows[second].pinned
    assert rows[third].tombstoned_by == ["000001-0a1b2c3d"]
    assert [row.newest for row in rows.values()] == [True, False, False, False]


def test_ls_shows_what_lies_outside_the_lineage_and_what_cannot_be_read(run: Run, filled: Filled) -> None:
    oldest, _, third, _ = filled.versions
    filled.plant(f"versions/{third}/manifest.json", b"no manifest")
    with filled.channel.publisher(resume_from=oldest, sweep=False):
        done = run("ls", filled.path)
    states = {line.split()[0]: line for line in done.out.splitlines()}
    assert states[oldest].endswith("newest, held by 1")
    assert "outside the lineage" in states[filled.versions[1]]
    assert states[third].endswith("outside the lineage, unreadable: bad_stable")


def test_show_prints_the_manifest_its_files_and_the_path_to_load(run: Run, filled: Filled) -> None:
    done = run("show", filled.path, "newest", "--json")
    shown = msgspec.json.decode(done.out, type=Shown)
    assert shown.version == filled.versions[-1]
    assert shown.parent == filled.versions[-2]
    assert shown.path == str(filled.path / "versions" / shown.version)
    assert [(file.path, file.bytes, len(file.digests)) for file in shown.files] == [("w.bin", 12, 1)]
    assert (shown.in_lineage, shown.newest, shown.pinned) == (True, True, False)


@pytest.mark.parametrize("text", ["2", "name"])
def test_a_version_is_named_by_its_step_or_its_name(run: Run, filled: Filled, text: str) -> None:
    wanted = filled.versions[1]
    done = run("show", filled.path, wanted if text == "name" else text)
    assert done.code == 0
    assert done.out.splitlines()[0].split() == ["version", wanted]


@pytest.mark.parametrize("text", ["7", "c000009-s00000009-00000000", "../../etc", "latest", ""])
def test_what_is_no_version_is_an_error_of_the_call(run: Run, filled: Filled, text: str) -> None:
    done = run("show", filled.path, text, "--json")
    assert done.code == 2
    assert done.data["error"]["code"] == "no_such_version"


def test_verify_reads_the_newest_version(run: Run, filled: Filled) -> None:
    done = run("verify", filled.path)
    assert done.code == 0
    assert done.out.splitlines()[1].split() == [filled.versions[-1], "1", "12", "B", "right"]


def test_verify_finds_a_flipped_byte_among_all(run: Run, filled: Filled) -> None:
    damaged = filled.path / "versions" / filled.versions[1] / "w.bin"
    data = bytearray(damaged.read_bytes())
    data[3] ^= 1
    damaged.write_bytes(data)
    done = run("verify", filled.path, "--all", "--json")
    assert done.code == 3
    found = msgspec.json.decode(done.out, type=Verified).versions
    assert [(row.version, row.ok) for row in found] == list(
        zip(filled.versions, [True, False, True, True], strict=True)
    )
    assert found[1].problem is not None
    assert found[1].problem.code == "wrong_digest"
    assert "WRONG: w.bin: block 0 has the digest" in run("verify", filled.path, "2").out


def test_verify_waits_for_what_may_be_not_visible_yet_and_then_says_so(run: Run, filled: Filled) -> None:
    (filled.path / "versions" / filled.versions[3] / "w.bin").unlink()
    done = run("verify", filled.path, "--patience", "0.2", "--json")
    assert done.code == 3
    row = done.data["versions"][0]
    assert row["ok"] is False
    assert row["seconds"] >= 0.2
    assert row["problem"]["code"] == "errno_enoent"


def test_verify_takes_a_version_or_all(run: Run, filled: Filled) -> None:
    done = run("verify", filled.path, "2", "--all")
    assert (done.code, done.out) == (2, "")


def test_an_empty_channel_has_no_versions(run: Run, filled: Filled) -> None:
    empty = fill(filled.path.parent / "empty")
    assert run("ls", empty.path).out == "no versions\n"
    assert run("verify", empty.path, "--all").out == "no versions\n"
    done = run("show", empty.path)
    assert done.code == 2
    assert "nothing is published" in done.err


@pytest.mark.parametrize("command", [("ls",), ("show",), ("verify", "--all"), ("status",), ("sweep", "--dry-run")])
def test_tables_fit_80_columns(
    run: Run, filled: Filled, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    filled.plant("consumers/" + "x" * 100 + ".000001-00000000.json", b"what is this")
    with filled.channel.consumer("a-server-with-quite-a-long-name-in-rack-17.example.org") as consumer:
        consumer.hold(filled.versions[0])
        consumer.hold(filled.versions[1])
        monkeypatch.setenv("COLUMNS", "80")
        done = run(command[0], filled.path, *command[1:])
    assert max(cell_len(line) for line in done.out.splitlines()) <= 80
    assert all(name in done.out for name in filled.versions[-1:])


def _sweeper(*doomed: str) -> bytes:
    from holdfast.core.records import Party, SweeperRecord, encode

    return encode(SweeperRecord(beat=1, cycle=1, tombstones=doomed, party=Party(host="h", device="d", bound_s=0.0)))

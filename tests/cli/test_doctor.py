"""`holdfast doctor`: what it finds on a good file system, on broken ones, and between two processes."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import msgspec
import pytest

from holdfast import Channel
from holdfast.channel.doctor import Diagnosis
from holdfast.channel.probes import Probe
from holdfast.channel.visibility import Lateness, Reader, Visibility, Writer, bound_from, store_bound
from holdfast.errors import ConflictError, TimedOutError, UnavailableError
from tests.cli.conftest import Filled, Run, without_rights
from tests.support.channels import WAIT_S, thread, until

SMALL = ("--bytes", 2_000_000, "--seconds", 1)


def _probes(out: str) -> dict[str, Probe]:
    return {probe.name: probe for probe in msgspec.json.decode(out, type=Diagnosis).probes}


def _broken(out: str) -> set[str]:
    """All but "another uid": the directories that tests run in are closed to others, and that is found."""
    return {name for name, probe in _probes(out).items() if probe.verdict == "broken"} - {"another uid"}


def test_a_good_file_system_has_all_that_is_needed(run: Run, tmp_path: pathlib.Path) -> None:
    done = run("doctor", tmp_path, *SMALL, "--json")
    assert done.code == 0
    probes = _probes(done.out)
    assert _broken(done.out) == set()
    assert set(probes) == {
        *(
            "file system",
            "small writes",
            "directory sync",
            "rename of a directory",
            "replace a file",
            "exclusive create",
        ),
        *("link", "symlink", "modes", "another uid", "free space", "notification", "write speed", "read speed"),
    }
    assert all(probe.verdict == "ok" for probe in probes.values() if probe.name in ("link", "modes", "symlink"))
    assert probes["write speed"].value is not None
    assert list(tmp_path.iterdir()) == []


def test_the_table_says_whether_a_channel_can_work(run: Run, tmp_path: pathlib.Path) -> None:
    done = run("doctor", tmp_path, *SMALL)
    assert done.out.splitlines()[-1] == f"{tmp_path}: a channel can work here"


def _refuses(number: int) -> Callable[..., None]:
    def call(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("call", "number", "broken"),
    [
        ("link", errno.EPERM, {"link"}),
        ("rename", errno.EXDEV, {"rename of a directory", "replace a file", "notification"}),
    ],
)
def test_a_file_system_without_what_is_needed_is_unhealthy(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, broken: set[str]
) -> None:
    monkeypatch.setattr(os, call, _refuses(number))
    done = run("doctor", tmp_path, *SMALL, "--json")
    monkeypatch.undo()
    assert done.code == 3
    probes = _probes(done.out)
    assert _broken(done.out) == broken
    assert all(errno.errorcode[number] in probes[name].found for name in broken)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_sync_directories_is_good_enough(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def files_only(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    done = run("doctor", tmp_path, *SMALL, "--json")
    probe = _probes(done.out)["directory sync"]
    assert (done.code, probe.verdict, probe.needed) == (0, "broken", False)
    assert "power cut" in probe.meaning


def test_a_race_that_two_win_is_found(run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def always(source: pathlib.Path, target: pathlib.Path) -> None:
        target.unlink(missing_ok=True)
        link(source, target)

    monkeypatch.setattr(os, "link", always)
    done = run("doctor", tmp_path, *SMALL, "--json")
    assert (done.code, _probes(done.out)["link"].verdict) == (3, "broken")


def test_a_full_disk_is_found(run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", _refuses(errno.ENOSPC))
    done = run("doctor", tmp_path, "--bytes", 2**26, "--json")
    assert (done.code, _probes(done.out)["write speed"].found) == (
        3,
        f"ENOSPC after {2**25} bytes: No space left on device",
    )
    assert list(tmp_path.iterdir()) == []


def test_another_uid_is_really_tried_where_that_is_possible(run: Run, read_only: Filled) -> None:
    place = read_only.path.parent
    probe = _probes(run("doctor", place, *SMALL, "--json").out)["another uid"]
    assert probe.verdict == ("ok" if os.geteuid() == 0 else "skipped"), probe
    (place / "closed").mkdir(mode=0o700)
    probe = _probes(run("doctor", place / "closed", *SMALL, "--json").out)["another uid"]
    assert (probe.verdict, f"{place / 'closed'} is closed to others" in probe.found) == ("broken", True)


def test_modes_that_do_not_stay_are_found(run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pathlib.Path, "chmod", lambda path, mode: None)
    (tmp_path / "d").mkdir()
    before = os.umask(0o077)
    try:
        probe = _probes(run("doctor", tmp_path / "d", *SMALL, "--json").out)["modes"]
    finally:
        os.umask(before)
    assert probe.verdict == "broken"
    assert "0o600 instead of 0o644" in probe.found


def test_nothing_can_be_tried_where_this_user_may_not_write(run: Run, read_only: Filled) -> None:
    run("doctor", read_only.path, *SMALL)  # imports what it needs while it may
    with without_rights():
        done = run("doctor", read_only.path, "--json")
    assert (done.code, done.data["error"]["code"]) == (1, "errno_eacces")


@pytest.mark.parametrize(
    "words",
    [("/no/such/place",), ("/etc/passwd",), (".", "--write", "--read"), (".", "--bytes", 0), (".", "--seconds", 0)],
)
def test_wrong_calls(run: Run, words: tuple[object, ...]) -> None:
    assert run("doctor", *words).code == 2


def _process(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "holdfast.cli.main", "doctor", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_measure_how_late_changes_are_seen(filled: Filled) -> None:
    before = (filled.path / "channel.json").read_bytes()
    with (
        _process(filled.path, "--write", "--json", "--patience", 60) as writer,
        _process(filled.path, "--read", "--json", "--patience", 60, "--seconds", 0.5) as reader,
    ):
        seen, _ = reader.communicate(timeout=60)
        stored, told = writer.communicate(timeout=60)
    assert (reader.returncode, writer.returncode) == (0, 0)
    found = msgspec.json.decode(seen, type=Visibility)
    assert [one.way for one in found.ways] == ["listing", "new name", "replaced record", "directory renamed in"]
    assert all(one.rounds >= 1 and 0 < one.median_s <= one.largest_s for one in found.ways)
    assert (found.same_mount, found.bound_s, found.stored) == (True, None, False)
    assert json.loads(stored)["ways"] == json.loads(seen)["ways"]
    assert told == f"now run on the other machine: holdfast doctor {filled.path} --read\n"
    assert (filled.path / "channel.json").read_bytes() == before, "one mount tells nothing of others"
    assert not (filled.path / ".holdfast-doctor-visibility").exists()


def test_a_measurement_is_not_disturbed_by_another_and_takes_over_from_a_dead_one(tmp_path: pathlib.Path) -> None:
    with thread(lambda: Writer(tmp_path, patience_s=WAIT_S).run()) as first:
        while not (tmp_path / ".holdfast-doctor-visibility" / "hello.json").exists():
            assert first.is_alive()
        with pytest.raises(ConflictError) as refused:
            Writer(tmp_path).run()
        assert refused.value.code == "measuring"
        Reader(tmp_path, seconds=0.1).run()
    dead = tmp_path / ".holdfast-doctor-visibility"
    (dead / "reader").mkdir(parents=True)
    (dead / "hello.json").write_bytes(b"{}")
    with pytest.raises(TimedOutError) as alone:
        Writer(tmp_path, patience_s=0.1).run()
    assert alone.value.code == "no_reader"
    assert not dead.exists()


def test_a_reader_without_a_writer_gives_up(run: Run, tmp_path: pathlib.Path) -> None:
    done = run("doctor", tmp_path, "--read", "--patience", 0.1, "--json")
    assert (done.code, done.data["error"]["code"]) == (75, "not_seen")


def test_a_measurement_whose_place_is_taken_away_ends_on_both_sides(tmp_path: pathlib.Path) -> None:
    place = tmp_path / ".holdfast-doctor-visibility"
    codes: dict[str, str] = {}

    def side(name: str, work: Callable[[], object]) -> None:
        with pytest.raises(UnavailableError) as ended:
            work()
        codes[name] = ended.value.code

    with (
        thread(lambda: side("writer", Writer(tmp_path, patience_s=WAIT_S).run)),
        thread(lambda: side("reader", Reader(tmp_path, seconds=1000.0, patience_s=WAIT_S).run)),
    ):
        until(lambda: (place / "reader" / "ask-000004.json").exists())
        os.rename(place, tmp_path / "elsewhere")
    assert codes == {"writer": "errno_enoent", "reader": "writer_left"}


def _measured(host: str, largest_s: float, path: pathlib.Path) -> Visibility:
    ways = [Lateness(way="new name", rounds=3, median_s=0.02, largest_s=largest_s)]
    return Visibility(
        path=str(path),
        role="write",
        writer_host="trainer",
        reader_host=host,
        same_mount=False,
        ways=ways,
        bound_s=bound_from(ways),
    )


@pytest.mark.parametrize(("largest_s", "bound_s"), [(0.001, 1.0), (0.5, 1.0), (0.62, 1.3), (29.9, 59.8)])
def test_the_bound_is_twice_the_largest_and_a_second_at_least(largest_s: float, bound_s: float) -> None:
    assert bound_from(_measured("a", largest_s, pathlib.Path("/")).ways) == pytest.approx(bound_s)


def test_the_channel_keeps_the_largest_bound_of_all_machines(run: Run, filled: Filled) -> None:
    store_bound(_measured("server-1", 3.0, filled.path))
    stored = store_bound(_measured("server-2", 0.1, filled.path))
    assert (stored.stored, stored.stored_bound_s) == (True, 6.0)
    assert run("status", filled.path, "--json").data["visibility_bound_s"] == 6.0
    assert Channel(filled.path).party().bound_s == 6.0
    assert store_bound(_measured("server-1", 1.0, filled.path)).stored_bound_s == 2.0
    probed = Channel(filled.path).open().probed
    assert set(probed) == {"capabilities", "visibility"}
    assert set(probed["visibility"]) == {"server-1", "server-2"}


def test_a_bound_is_stored_in_channels_only(tmp_path: pathlib.Path) -> None:
    assert not store_bound(_measured("server-1", 3.0, tmp_path)).stored
    assert list(tmp_path.iterdir()) == []

"""The orders of publish, claim, hold and sweep, read off a list of operations: a disk's history, or system calls."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

from holdfast.testing import Operation
from tests.crash.listening import Heard

TEMPORARY = re.compile(r"\.tmp-[0-9a-f]+")
DURABLE = re.compile(r"channel\.json|cycles/\d{6}\.json|(consumers|sweepers)/[^/]+\.(json|reserve)")
HINT = re.compile(r"CURRENT|cycles/\d{6}\.beat|broadcasts/c\d{6}/step_\d+")
WRITES = ("create", "pwrite")
NAMES = ("create", "mkdir", "symlink", "rename", "link", "unlink", "rmdir")


class Trace:
    """Operations below `root`, with paths relative to it, and marks; everything else is left out."""

    def __init__(self, root: str, operations: Sequence[Operation]) -> None:
        below = f"{root}/"
        self.operations = [
            dataclasses.replace(one, path=one.path.removeprefix(root).removeprefix("/"), to=one.to.removeprefix(below))
            for one in operations
            if one.path.startswith(below) or one.name == "mark" or one.path == root
        ]

    def indexes(self, names: Sequence[str], path: Callable[[str], object], first: int = 0) -> list[int]:
        """Where one of `names` happens to a path for which `path` says so, from `first` on."""
        rest = enumerate(self.operations[first:], first)
        return [i for i, one in rest if one.name in names and (path(one.path) or (one.to and path(one.to)))]

    def is_synced(self, path: str, after: int, before: int) -> bool:
        """Whether the file or directory was synced between two operations."""
        return any(
            one.name in ("fsync", "fsync_directory") and one.path == path for one in self.operations[after + 1 : before]
        )


def above(path: str) -> str:
    return path.rpartition("/")[0]


def check_orders(trace: Trace) -> dict[str, int]:
    """Every order of design 4.2 that shows in operations; how often each was looked at."""
    counts = dict.fromkeys(("version", "record", "hint", "retired"), 0)
    for commit, one in enumerate(trace.operations):
        if one.name not in ("rename", "link") or not one.to:
            continue
        if one.path.startswith("staging/") and one.to.startswith("versions/"):
            pointed = [i for i in trace.indexes(("rename",), lambda path: path == "CURRENT") if i < commit]
            assert len(pointed) == counts["version"], "CURRENT is pointed at what is there"
            counts["version"] += 1
            _check_version(trace, commit)
        elif one.path.startswith("versions/"):
            counts["retired"] += 1
            _check_retired(trace, commit)
        elif DURABLE.fullmatch(one.to):
            counts["record"] += 1
            _check_record(trace, commit)
        elif HINT.fullmatch(one.to):
            counts["hint"] += 1
            assert TEMPORARY.fullmatch(one.path.rpartition("/")[2]), "written apart, then renamed"
    _check_written_once(trace)
    return counts


def _check_version(trace: Trace, commit: int) -> None:
    """Files synced, then the manifest, then the directories, then the rename, then versions/, then the hints."""
    one = trace.operations[commit]
    staged = one.path

    def is_in(path: str) -> bool:
        return path == staged or path.startswith(f"{staged}/")

    before = [i for i in trace.indexes((*WRITES, *NAMES), is_in) if i < commit]
    files = {trace.operations[i].path for i in before if trace.operations[i].name == "create"}
    directories = {trace.operations[i].path for i in before if trace.operations[i].name == "mkdir"}
    assert {f"{staged}/STABLE", f"{staged}/manifest.json"} < files
    made = {trace.operations[i].path: i for i in before if trace.operations[i].name == "create"}
    assert max(made, key=lambda path: made[path]) == f"{staged}/manifest.json", "the manifest comes last"
    for path in files:
        last = max(i for i in before if trace.operations[i].path == path)
        next_step = commit if path.endswith("/manifest.json") else made[f"{staged}/manifest.json"]
        assert trace.is_synced(path, last, next_step), f"{path} is not synced before what follows"
    for path in directories:
        last = max(i for i in before if above(trace.operations[i].path) == path)
        assert trace.is_synced(path, last, commit), f"directory {path} is not synced before the rename"
    hints = trace.indexes(("rename", "symlink"), HINT.fullmatch, commit)
    assert trace.is_synced("versions", commit, hints[0] if hints else len(trace.operations))


def _check_record(trace: Trace, named: int) -> None:
    """Written under a temporary name and synced, then named, then its directory synced before anything else."""
    one = trace.operations[named]
    assert TEMPORARY.fullmatch(one.path.rpartition("/")[2]), f"{one.to} is not written apart"
    assert above(one.path) == above(one.to)
    last = max(i for i in trace.indexes(WRITES, lambda path: path == one.path) if i < named)
    assert trace.is_synced(one.path, last, named), f"{one.to} is named before its bytes are durable"
    follows = next(iter(trace.operations[named + 1 :]), None)
    assert follows is None or (follows.name in ("fsync", "fsync_directory") and follows.path == above(one.to)), follows


def _check_retired(trace: Trace, moved: int) -> None:
    """Announced durably before; out of versions/ durably before the first file goes."""
    one = trace.operations[moved]
    announced = [
        i
        for i in trace.indexes(("rename",), lambda path: path.startswith("sweepers/") and path.endswith(".json"))
        if i < moved
    ]
    assert announced
    removed = trace.indexes(("unlink", "rmdir"), lambda path: path.startswith(one.to), moved)
    assert removed
    assert trace.is_synced("versions", moved, removed[0])


def _check_written_once(trace: Trace) -> None:
    """A file is written where it was created, and never again under the name that readers know."""
    for one in trace.operations:
        if one.name in WRITES:
            is_apart = one.path.startswith("staging/") or TEMPORARY.fullmatch(one.path.rpartition("/")[2])
            assert is_apart, f"{one.path} is written in place"
        if one.name in ("unlink", "rmdir"):
            top = one.path.split("/")[0]
            assert top != "versions", f"{one.path} is removed in place"


# What is read between writes; needs a trace with reads and marks in it.


def check_takes(trace: Trace) -> int:
    """Hold written durably; then every sweeper's file read; then, by fresh listings, the manifest; then the payload."""
    count = 0
    for begin, end, version in _spans(trace, "take", "given "):
        count += 1
        hold = trace.indexes(("rename",), _is_consumers, begin)[0]
        tree = f"versions/{version}"
        read = [i for i in range(begin, end) if trace.operations[i].name == "open_read"]
        opened = [i for i in read if trace.operations[i].path.startswith(f"{tree}/")]
        assert trace.operations[opened[0]].path == f"{tree}/manifest.json"
        assert trace.operations[opened[1]].path == f"{tree}/STABLE"
        look = trace.indexes(("scandir",), lambda path: path == "sweepers", hold)[0]
        assert trace.is_synced("consumers", hold, look), "the hold is durable before the look"
        assert any(_reads(one, _is_sweepers) for one in trace.operations[look : opened[0]]), "and the look is a look"
        listed = [one.path for one in trace.operations[look : opened[0]] if one.name == "scandir"]
        assert {"versions", tree} <= set(listed), "fresh listings before the first name is asked for"
        hint = next(i for i in read if trace.operations[i].path == "CURRENT")
        listed = [one.path for one in trace.operations[begin:hint] if one.name == "scandir"]
        assert {"", "cycles"} <= set(listed), "the channel, then its claims, before CURRENT"
    return count


def check_acknowledgements(trace: Trace) -> int:
    """The sweepers' files are read anew between the user's call and the record that says so, which is durable."""
    count = 0
    for begin, end, _ in _spans(trace, "acknowledge", "acknowledged"):
        count += 1
        said = trace.indexes(("rename",), _is_consumers, begin)[0]
        assert said < end
        assert any(_reads(one, _is_sweepers) for one in trace.operations[begin:said])
        assert trace.is_synced("consumers", said, end)
    return count


def check_sweeps(trace: Trace) -> int:
    """Tombstone durable; then claims, versions and every consumer's file anew; then it is taken out of versions/."""
    moves = trace.indexes(("rename",), lambda path: path.startswith("staging/retired-"))
    moves = [i for i in moves if trace.operations[i].path.startswith("versions/")]
    for move in moves:
        announced = max(i for i in trace.indexes(("rename",), _is_sweepers) if i < move)
        durable = next(i for i in range(announced, move) if trace.operations[i].path == "sweepers")
        assert trace.operations[durable].name == "fsync_directory"
        looked = trace.operations[durable:move]
        listed = {one.path for one in looked if one.name == "scandir"}
        assert {"", "cycles", "versions", "consumers", "sweepers"} <= listed, f"not looked at again: {listed}"
        assert any(_reads(one, lambda path: path.startswith("consumers/")) for one in looked)
        reads = [
            one for one in looked if _reads(one, _is_consumers) and isinstance(one, Heard) and one.who == "sweeper"
        ]
        assert len(reads) == 1, "announced after the first look, and removed after the second"
    return len(moves)


def check_listed_first(root: str, heard: Sequence[Heard]) -> int:
    """Each file that is opened was shown to whoever opens it by a listing since somebody else gave it its name."""
    trace = Trace(root, heard)
    named: dict[str, tuple[int, str]] = {}
    listed: dict[tuple[str, str], int] = {}
    count = 0
    for i, one in enumerate(trace.operations):
        assert isinstance(one, Heard)
        who = one.who
        if one.name == "scandir":
            listed[who, one.path] = i
        elif one.name in ("rename", "link"):
            named[one.to] = (i, who)
        elif one.name == "open_read":
            count += 1
            parts = one.path.split("/")
            for path in ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1)):
                since, by = named.get(path, (-2, ""))
                assert by == who or listed.get((who, above(path)), -1) > since, f"{path} is asked for unseen by {who}"
    return count


def _spans(trace: Trace, first: str, last: str) -> list[tuple[int, int, str]]:
    """Pairs of marks: index of one that is `first`, of the next that begins with `last`, and what that says beyond."""
    marks = [(i, one.path) for i, one in enumerate(trace.operations) if one.name == "mark"]
    found = []
    for (i, text), (j, then) in itertools.pairwise(marks):
        if text == first and then.startswith(last):
            found.append((i, j, then.removeprefix(last)))
    return found


def _is_consumers(path: str) -> bool:
    return path.startswith("consumers/") and path.endswith(".json")


def _is_sweepers(path: str) -> bool:
    return path.startswith("sweepers/") and path.endswith(".json")


def _reads(one: Operation, path: Callable[[str], bool]) -> bool:
    return one.name == "open_read" and path(one.path)

"""The orders of design 4.2 in the system calls themselves, as strace sees them: nothing between us and the kernel.

It stands here because strace is one of the packages that this suite asks for. The fast suite reads the same orders
off the calls of the storage contract (`tests/crash/test_protocol_trace.py`).
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

from holdfast.testing import Operation
from tests.crash.orders import Trace, check_orders

pytestmark = pytest.mark.nfs

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CALLS = (
    "%file,fsync,fdatasync,sync_file_range,write,pwrite64,writev,pwritev,pwritev2,ftruncate,fallocate,"
    "copy_file_range,sendfile,splice,fchmod,fchown"
)
LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|\?)(.*)")
UNFINISHED = re.compile(r"(\d+) +(.*) <unfinished \.\.\.>")
RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
ARGUMENT = re.compile(r'"((?:[^"\\]|\\.)*)"(?:\.\.\.)?|(AT_FDCWD|-?\d+)<([^>]*)>|([^,\s][^,]*)')
CHANGES = {
    "mkdirat": "mkdir",
    "mkdir": "mkdir",
    "renameat": "rename",
    "renameat2": "rename",
    "rename": "rename",
    "linkat": "link",
    "link": "link",
    "symlinkat": "symlink",
    "symlink": "symlink",
    "fsync": "fsync",
    "fdatasync": "fsync",
    "pwrite64": "pwrite",
    "pwritev": "pwrite",
    "pwritev2": "pwrite",
    "write": "pwrite",
    "writev": "pwrite",
    "fchmod": "chmod",
}
ON_HANDLE = ("fsync", "fdatasync", "fchmod", "write", "writev", "pwrite64", "pwritev", "pwritev2")
FORBIDDEN = ("ftruncate", "truncate", "fallocate", "copy_file_range", "sendfile", "splice", "fchown", "creat", "mknod")


def _calls(text: str) -> list[tuple[str, str]]:
    """Name and arguments of every call that succeeded, in order; calls that another thread interrupted are joined."""
    found: list[tuple[str, str]] = []
    begun: dict[str, str] = {}
    for line in text.splitlines():
        if match := UNFINISHED.fullmatch(line):
            begun[match[1]] = match[2]
            continue
        if match := RESUMED.fullmatch(line):
            line = f"{match[1]} {begun.pop(match[1])}{match[2]}"
        if (match := LINE.fullmatch(line)) and match[4] not in ("-1", "?"):
            found.append((match[2], match[3]))
    return found


def _paths(arguments: str) -> list[str]:
    """The full paths among a call's arguments, in order; a name is relative to the handle that stands before it."""
    paths: list[str] = []
    at = ""
    for quoted, handle, place, _ in ARGUMENT.findall(arguments):
        if handle and place:
            at = place
            paths.append(place)
        elif quoted:
            if at:
                paths.pop()
            paths.append(quoted if quoted.startswith("/") else f"{at}/{quoted}")
            at = ""
    return paths


def _operations(calls: list[tuple[str, str]], root: str) -> list[Operation]:
    """The calls that change something below `root`, as the orders want them."""
    found: list[Operation] = []
    for name, arguments in calls:
        paths = [arguments.partition("<")[2].partition(">")[0]] if name in ON_HANDLE else _paths(arguments)
        if not any(path.startswith(root) for path in paths):
            continue
        assert name not in FORBIDDEN, f"{name}({arguments})"
        if name in ("open", "openat"):
            found += _opened(paths[0], arguments, root)
        elif name in ("unlink", "unlinkat"):
            found.append(Operation("rmdir" if "AT_REMOVEDIR" in arguments else "unlink", paths[0]))
        elif name == "symlinkat":
            found.append(Operation("symlink", paths[-1]))
        elif name in CHANGES and not (CHANGES[name] == "pwrite" and paths[0].startswith(f"{root}/events/")):
            found.append(Operation(CHANGES[name], paths[0], paths[1] if len(paths) > 1 else ""))
    return found


def _opened(path: str, arguments: str, root: str) -> list[Operation]:
    """An open below the channel never follows a symlink, and writes only what it has just created."""
    if path == root or not path.startswith(root):
        return []
    assert "O_NOFOLLOW" in arguments, f"openat({arguments}) follows what may have been planted"
    if path.startswith(f"{root}/events/"):
        assert "O_WRONLY" not in arguments or "O_APPEND" in arguments
        return []
    if "O_WRONLY" in arguments or "O_RDWR" in arguments:
        assert "O_CREAT|O_EXCL" in arguments, f"openat({arguments}) opens for writing what was there"
        return [Operation("create", path)]
    return []


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[str, str]]]:
    """The channel's root, and all calls of a process that published, consumed and swept there."""
    directory = tmp_path_factory.mktemp("traced")
    root, log = str(directory / "channel"), directory / "log"
    strace = ["strace", "-f", "-y", "-s", "200", "-e", f"trace={CALLS}", "-o", str(log)]
    command = [*strace, sys.executable, "-m", "tests.crash.traced", root]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=100)
    return root, _calls(log.read_text(encoding="utf-8", errors="replace"))


def test_system_calls_come_in_the_order_that_the_design_gives(traced: tuple[str, list[tuple[str, str]]]) -> None:
    root, calls = traced
    operations = _operations(calls, root)
    counts = check_orders(Trace(root, operations))
    assert counts["version"] == 5
    assert counts["record"] >= 25
    assert counts["hint"] >= 5
    assert counts["retired"] == 4
    assert {one.name for one in operations} >= {"create", "pwrite", "fsync", "rename", "link", "unlink", "symlink"}


@pytest.mark.parametrize(
    "planted",
    [
        ("openat", 'AT_FDCWD</>, "ROOT/CURRENT", O_RDONLY|O_CLOEXEC'),
        ("openat", '3<ROOT>, "CURRENT", O_WRONLY|O_CREAT|O_TRUNC|O_NOFOLLOW, 0644'),
        ("openat", '3<ROOT/versions>, "x", O_WRONLY|O_CREAT|O_EXCL|O_NOFOLLOW, 0644'),
        ("ftruncate", "3<ROOT/CURRENT>, 0"),
        ("renameat", '3<ROOT/staging>, "c000001-00", 4<ROOT/versions>, "c000001-s00000009-00000000"'),
        ("unlinkat", '3<ROOT/versions/c000001-s00000005-00000000>, "model.bin", 0'),
    ],
)
def test_a_call_out_of_order_is_found(traced: tuple[str, list[tuple[str, str]]], planted: tuple[str, str]) -> None:
    root, calls = traced
    name, arguments = planted
    check_orders(Trace(root, _operations(calls, root)))
    with pytest.raises((AssertionError, ValueError)):
        check_orders(Trace(root, _operations([*calls, (name, arguments.replace("ROOT", root))], root)))


@pytest.mark.parametrize("path", ["model.bin", "more/part.bin", "STABLE", "manifest.json", "more", ""])
def test_each_sync_of_a_version_that_is_left_out_is_missed(
    traced: tuple[str, list[tuple[str, str]]], path: str
) -> None:
    root, calls = traced
    operations = _operations(calls, root)
    commit = next(one for one in operations if one.name == "rename" and one.to.startswith(f"{root}/versions/"))
    whole = f"{commit.path}/{path}".rstrip("/")
    without = [one for one in operations if not (one.name == "fsync" and one.path == whole)]
    assert len(without) < len(operations)
    with pytest.raises(AssertionError, match="synced"):
        check_orders(Trace(root, without))

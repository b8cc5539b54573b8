"""The runner itself: two clients that share a volume and no cache, whose output and end arrive here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.nfs.runner import VERSIONS, kernel_processes, missing, run_on_two_clients

pytestmark = [
    pytest.mark.nfs,
    pytest.mark.timeout(150),
    pytest.mark.skipif(bool(missing()), reason=missing() or "real NFS clients can run here"),
]

_BOTH_WAYS = """
import os, pathlib
a, b = pathlib.Path("/mnt/a"), pathlib.Path("/mnt/b")
early = b / "from-a"
assert not early.exists()
(a / "from-a").write_text("1")
print("asked too early:", early.exists())
os.listdir(b)
print("after a listing:", early.exists())
(b / "from-b").write_text("2")
print(early.read_text(), (a / "from-b").read_text())
raise SystemExit(7)
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_two_mounts_share_files_but_no_cache(version: str) -> None:
    done = run_on_two_clients(version, [sys.executable, "-c", _BOTH_WAYS], timeout_s=90)
    assert done.stdout.splitlines() == ["asked too early: False", "after a listing: True", "1 2"], done.stderr
    assert done.returncode == 7


def test_a_command_that_hangs_is_ended_with_all_its_processes() -> None:
    script = "import sys; print('started', flush=True); sys.stdin.close(); import threading; threading.Event().wait()"
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        run_on_two_clients("4.2", [sys.executable, "-c", script], timeout_s=25)
    assert raised.value.output == "started\n"
    jobs = {argument[4:] for _, arguments in kernel_processes() for argument in arguments if argument[:4] == "job="}
    assert all(os.path.isdir(job) for job in jobs), "a kernel outlived its job's directory"

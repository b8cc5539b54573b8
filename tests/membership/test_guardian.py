"""Workers never outlive their agent, however it ends, and nobody else is hurt."""

from __future__ import annotations

import os
import pathlib
import secrets
import signal

import pytest

from holdfast.rendezvous.guardian import end_marked, marked, marks, remove_desk
from holdfast.rendezvous.workers import AGAIN_S, end_workers
from tests.membership.acting import DEAF, FAMILY, ORPHAN, PATIENCE_S, PAUSE, STOPPED, acting, process
from tests.support.channels import until

RSS_KB_MAX = 12 * 1024
TERMINAL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@pytest.fixture
def token() -> str:
    return secrets.token_hex(16)


def _waits(pid: int) -> dict[str, str] | None:
    """What the kernel says of a guardian, once it sleeps and has its signals in order."""
    text = pathlib.Path("/proc", str(pid), "status").read_text()
    said = dict(line.split(":\t", 1) for line in text.splitlines())
    ignored = int(said["SigIgn"], 16)
    ready = said["State"].startswith("S") and all(ignored >> number - 1 & 1 for number in TERMINAL)
    return said if ready else None


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, None])
def test_nothing_outlives_its_agent(tmp_path: pathlib.Path, token: str, end: int | None) -> None:
    with acting(tmp_path, token, PAUSE, FAMILY, ORPHAN, DEAF, STOPPED) as job:
        assert len(job.workers) == 6
        assert (job.desk / "drain").exists()
        if end is None:
            assert job.agent.stdin is not None
            job.agent.stdin.close()  # it ends in order
            job.agent.stdin = None
        else:
            job.agent.send_signal(end)
        assert job.guardian.ended(PATIENCE_S)
        assert all(worker.ended(1.0) for worker in job.workers)  # it waited for them: a moment, for the kernel
        assert not job.desk.exists()
        assert b"ended 6 processes" in job.agent.communicate()[1]


def test_workers_may_end_in_order(tmp_path: pathlib.Path, token: str) -> None:
    """SIGTERM comes first, and what ends by it is not waited for."""
    last = tmp_path / "last-words"
    script = (
        "import os, pathlib, signal, sys\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(last)!r}).write_text('saved'), sys.exit()))\n"
        "print(os.getpid(), flush=True)\nwhile True: signal.pause()"
    )
    with acting(tmp_path, token, script, grace_s=3600) as job:
        job.agent.kill()
        assert job.workers[0].ended(PATIENCE_S)
        assert job.guardian.ended(PATIENCE_S)
        assert last.read_text() == "saved"


def test_others_are_let_be(tmp_path: pathlib.Path, token: str) -> None:
    other = {"HOLDFAST_AGENT": f"{token}0", "NOTE": f"HOLDFAST_AGENT={token}", "THE_HOLDFAST_AGENT": token}
    with process(PAUSE, other) as [stranger], acting(tmp_path, token, PAUSE) as job:
        job.agent.kill()
        assert job.guardian.ended(PATIENCE_S)
        assert job.workers[0].ended(PATIENCE_S)
        assert not stranger.ended()


def test_it_never_looks_at_itself() -> None:
    """The marks of this very process: others may carry them, but it does not find itself."""
    own = pathlib.Path("/proc/self/environ").read_bytes().split(b"\0")[0]
    with process(PAUSE, {}) as [child]:
        found = marked((own,))
        assert child.pid in found
        assert os.getpid() not in found
        assert child.pid not in marked((own,), frozenset({child.pid}))


def test_it_survives_what_is_meant_for_the_terminal(tmp_path: pathlib.Path, token: str) -> None:
    with acting(tmp_path, token, PAUSE) as job:
        assert os.getsid(job.guardian.pid) == job.guardian.pid
        until(lambda: _waits(job.guardian.pid))
        for number in TERMINAL:
            job.guardian.send(number)
        assert job.tell("check") == job.guardian.pid
        job.agent.kill()
        assert job.workers[0].ended(PATIENCE_S)


def test_one_that_is_killed_is_replaced(tmp_path: pathlib.Path, token: str) -> None:
    with acting(tmp_path, token, PAUSE) as job:
        first = job.guardian
        first.send(signal.SIGKILL)
        assert first.ended(PATIENCE_S)
        until(lambda: job.tell("check") not in (None, first.pid), timeout_s=PATIENCE_S + AGAIN_S)
        assert not job.guardian.ended()
        job.agent.kill()
        assert job.workers[0].ended(PATIENCE_S)
        assert job.guardian.ended(PATIENCE_S)


def test_it_is_small_and_sleeps(tmp_path: pathlib.Path, token: str) -> None:
    with acting(tmp_path, token) as job:
        said = until(lambda: _waits(job.guardian.pid))
        assert int(said["VmRSS"].split()[0]) < RSS_KB_MAX
        assert said["Threads"] == "1"


def test_closed_without_workers_it_ends(tmp_path: pathlib.Path, token: str) -> None:
    with acting(tmp_path, token) as job:
        assert job.tell("close") is None
        assert job.guardian.ended()
        assert job.tell("check") is None


def test_closed_with_workers_it_stays_until_the_agent_is_gone(tmp_path: pathlib.Path, token: str) -> None:
    with acting(tmp_path, token, DEAF) as job:
        assert job.tell("close") == job.guardian.pid
        assert not job.guardian.ended()
        assert not job.workers[0].ended()
        job.agent.kill()
        assert job.workers[0].ended(PATIENCE_S)


@pytest.mark.parametrize("script", [PAUSE, DEAF, STOPPED, FAMILY, ORPHAN])
@pytest.mark.parametrize("grace_s", [0.0, 0.1])
def test_the_agent_ends_its_own(token: str, script: str, grace_s: float) -> None:
    with process(script, {"HOLDFAST_AGENT": token}) as workers:
        assert end_workers(token, grace_s=grace_s) == len(workers)
        assert all(worker.ended(PATIENCE_S) for worker in workers)
        assert end_workers(token, grace_s=grace_s) == 0


def test_a_health_check_goes_with_the_agent_only(token: str) -> None:
    with process(PAUSE, {"HOLDFAST_CHECK": token}) as [check]:
        assert end_workers(token, grace_s=0.0) == 0
        assert not check.ended()
        assert end_marked(marks(token), grace_s=0.0) == 1
        assert check.ended(PATIENCE_S)


def test_only_a_desk_is_removed(tmp_path: pathlib.Path) -> None:
    other, desk, link = tmp_path / "data", tmp_path / "holdfast-desk-1", tmp_path / "holdfast-desk-2"
    nested = tmp_path / "holdfast-desk-3"
    for path in (other, desk, nested / "deep"):
        path.mkdir(parents=True)
        (path / "file").write_text("x")
    link.symlink_to(other)
    for path in (other, desk, link, nested, tmp_path / "holdfast-desk-none"):
        remove_desk(str(path))
    assert not desk.exists()
    assert (other / "file").exists()
    assert link.is_symlink()
    assert (nested / "deep" / "file").exists()

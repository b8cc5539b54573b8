"""The health check: what a verdict says, and that nothing of a check is left."""

from __future__ import annotations

import os
import pathlib
import secrets
import shlex
import sys
from collections.abc import Iterator

import pytest

from holdfast.rendezvous.guardian import marked
from holdfast.rendezvous.health import LINE_MAX, HealthCheck, Verdict
from tests.membership.acting import Watched
from tests.support.channels import until


def _verdict(check: HealthCheck) -> Verdict:
    check.start()
    found = until(check.poll)
    assert isinstance(found, Verdict)
    assert check.poll() is None, "said once"
    return found


@pytest.mark.parametrize(
    ("command", "ok", "reason"),
    [
        ("true", True, "the health check passed"),
        ("echo 8 GPUs", True, "the health check passed: 8 GPUs"),
        ("exit 3", False, "the health check failed with exit status 3"),
        (
            "echo one; echo GPU 4: ECC >&2; echo; exit 1",
            False,
            "the health check failed with exit status 1: GPU 4: ECC",
        ),
        ("kill -9 $$", False, "the health check was ended by SIGKILL"),
        ("/nowhere/at/all 2>/dev/null", False, "the health check failed with exit status 127"),
        (r"printf 'a\033[31m\000b\n\377\n'; exit 1", False, "the health check failed with exit status 1: \ufffd"),
        ("cat; echo read nothing", True, "the health check passed: read nothing"),
        (None, True, "there is no health check"),
    ],
)
def test_verdicts(command: str | None, ok: bool, reason: str) -> None:
    assert _verdict(HealthCheck(command)) == Verdict(ok, reason)


def test_what_it_says_is_bounded() -> None:
    script = f'{shlex.quote(sys.executable)} -c \'print("x" * 3000000); print("y" * 3000)\'; exit 1'
    found = _verdict(HealthCheck(script))
    assert found.reason.endswith("y…")
    assert len(found.reason) < LINE_MAX + 100


def test_again_and_again() -> None:
    check = HealthCheck("echo $((6 * 7)); false")
    for _ in range(3):
        assert _verdict(check).reason.endswith(": 42")


def test_it_cannot_be_started() -> None:
    found = _verdict(HealthCheck("echo \0"))
    assert not found.ok
    assert found.reason.startswith("the health check cannot be started: ")


def test_a_check_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_AGENT", "00ff")
    found = _verdict(HealthCheck("echo ${HOLDFAST_AGENT-none} $HOLDFAST_CHECK", token="00aa"))
    assert found.reason.endswith(": none 00aa")


# Nothing is left of it


@pytest.fixture
def token() -> Iterator[str]:
    token = secrets.token_hex(16)
    yield token
    until(lambda: marked((f"HOLDFAST_CHECK={token}".encode(),)) == [])


def _family(place: pathlib.Path) -> str:
    """A command with a child in a session of its own; neither listens to SIGTERM. It says both pids, in a file."""
    pids, draft = place / "pids", place / "draft"
    script = (
        "import os, pathlib, signal, subprocess, sys; signal.signal(15, signal.SIG_IGN)\n"
        "words = [sys.executable, '-c', 'import signal; signal.pause()']\n"
        "child = subprocess.Popen(words, start_new_session=True)\n"
        f"pathlib.Path({str(draft)!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(draft)!r}, {str(pids)!r})\n"
        "if len(sys.argv) == 1: signal.pause()"
    )
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}"


def _watched(place: pathlib.Path) -> list[Watched]:
    until((place / "pids").exists)
    return [Watched(int(pid)) for pid in (place / "pids").read_text().split()]


def test_cancelled(tmp_path: pathlib.Path, token: str) -> None:
    check = HealthCheck(_family(tmp_path), token=token)
    check.start()
    family = _watched(tmp_path)
    assert check.poll() is None
    check.cancel()
    check.cancel()
    assert all(member.ended(20) for member in family)
    assert check.poll() is None
    for member in family:
        member.close()


def test_too_slow(tmp_path: pathlib.Path, token: str) -> None:
    check = HealthCheck(f"echo waiting for the fabric; {_family(tmp_path)}", timeout_s=0.5, token=token)
    check.start()
    family = _watched(tmp_path)  # nobody asks before: it is asking that ends what took too long
    assert until(check.poll) == Verdict(False, "the health check took longer than 0.5 s: waiting for the fabric")
    assert all(member.ended(20) for member in family)
    for member in family:
        member.close()


def test_what_it_leaves_behind_goes_too(tmp_path: pathlib.Path, token: str) -> None:
    """Its child has the pipe still: the verdict does not wait for that."""
    assert _verdict(HealthCheck(f"{_family(tmp_path)} leave", token=token)).ok
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    until(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in pids))


def test_started_twice_it_runs_once(tmp_path: pathlib.Path, token: str) -> None:
    check = HealthCheck(f"echo x >> {shlex.quote(str(tmp_path / 'runs'))}", token=token)
    check.start()
    check.start()
    assert until(check.poll).ok
    assert (tmp_path / "runs").read_text() == "x\n"

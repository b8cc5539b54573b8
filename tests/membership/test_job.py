"""What a training script is told, and how it answers."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import types
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

import holdfast
from holdfast import launched
from holdfast.channel.claiming import process_term
from holdfast.errors import UnavailableError, UsageError
from holdfast.launched import Job, drain_requested, job, launched_term, one_line, ready_to_drain, worker_environment
from holdfast.rendezvous.desk import Desk
from tests.support.channels import until

RANKS = {"RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "2", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "4"}


def _environment(
    desk: str | os.PathLike[str] = "/nowhere", *, number: int = 3, reason: str = "node-1 was lost"
) -> dict[str, str]:
    made = worker_environment(
        token="00ff",
        desk=desk,
        run="run42",
        attempt="77.1",
        job="run42",
        term_round=1_000_000 + number,
        round=number,
        node="gpu007",
        spares=1,
        restarts=2,
        reason=reason,
    )
    return {**made, **RANKS}


@pytest.fixture
def desk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """The desk of the agent that started us, as it were."""
    desk = Desk(tmp_path)
    for name, value in _environment(desk.path).items():
        monkeypatch.setenv(name, value)
    yield desk
    desk.close()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _environment():
        monkeypatch.delenv(name, raising=False)


def test_what_a_worker_is_told(desk: Desk) -> None:
    assert job() == Job(
        run="run42",
        attempt="77.1",
        round=3,
        node="gpu007",
        rank=5,
        local_rank=1,
        group_rank=2,
        world_size=8,
        num_nodes=4,
        spares=1,
        restarts=2,
        reason="node-1 was lost",
    )


@pytest.mark.usefixtures("alone")
def test_without_a_launcher() -> None:
    assert job() is None
    assert launched_term() is None
    assert not drain_requested()
    assert not ready_to_drain()
    assert process_term().round == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOLDFAST_ROUND", None),
        ("HOLDFAST_ROUND", "-1"),
        ("HOLDFAST_ROUND", "3.0"),
        ("HOLDFAST_ROUND", "٣"),
        ("HOLDFAST_ROUND", "9" * 5000),
        ("HOLDFAST_SPARES", ""),
        ("HOLDFAST_NODE", None),
        ("RANK", None),
        ("GROUP_WORLD_SIZE", "four"),
    ],
)
def test_a_changed_environment_is_said(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name) as caught:
        job()
    assert caught.value.code == "bad_environment"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("name", "value"), [("HOLDFAST_JOB", ""), ("HOLDFAST_TERM_ROUND", "x")])
def test_half_a_term_is_no_term(desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name) as caught:
        process_term()
    assert caught.value.code == "bad_environment"


def test_the_term_is_the_launchers(desk: Desk) -> None:
    one, other = process_term(), process_term()
    assert (one.job, one.round) == ("run42", 1_000_003)
    assert (other.job, other.round) == (one.job, one.round)
    assert one.nonce != other.nonce


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("plain", "plain"),
        ("two\nlines\r\n", "two lines"),
        ("nul\0 and \x1b[31mred\x1b[0m\x07", "nul and [31mred [0m"),
        ("half \ud800 a pair", "half a pair"),
        ("a" * 5000, "a" * 399 + "…"),
        ("", ""),
    ],
)
def test_a_reason_is_one_line_that_an_environment_can_carry(reason: str, line: str) -> None:
    assert one_line(reason) == line
    environment = _environment(reason=reason)
    script = "import os; print(ascii(os.environ['HOLDFAST_REASON']))"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii(line)


def test_a_reason_in_a_small_locale() -> None:
    script = "from holdfast.launched import one_line; print(one_line('7 \\u2264 8 \\xe9'))"
    environment = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "7 ? 8 ?"


@pytest.mark.parametrize(
    "imports",
    [
        "import holdfast",
        "import holdfast.launched, holdfast",
        "from holdfast import job; import holdfast.launched, holdfast.channel.publisher, holdfast",
        "import holdfast.rendezvous.desk, holdfast; from holdfast.launched import job",
    ],
)
def test_the_function_wins_however_modules_are_imported(imports: str) -> None:
    script = f"{imports}; import types; print(type(holdfast.job) is types.FunctionType, holdfast.job.__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "job"]


def test_what_is_public() -> None:
    assert isinstance(holdfast.job, types.FunctionType)
    assert holdfast.Job is Job
    assert holdfast.drain_requested is drain_requested
    assert holdfast.ready_to_drain is ready_to_drain


# Draining


@pytest.fixture
def worker() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_a_drain_is_seen_and_its_end_too(desk: Desk) -> None:
    assert not drain_requested()
    desk.drain("node-3")
    assert drain_requested()
    desk.drain(None)
    assert not drain_requested()


def test_what_another_user_wrote_is_no_drain(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.drain("node-3")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not drain_requested()


def test_ready_until_it_is_called_off(desk: Desk, worker: ThreadPoolExecutor) -> None:
    desk.drain("node-3")
    answer: Future[bool] = worker.submit(ready_to_drain)
    until(lambda: desk.ready_workers(3) == 1)
    assert not answer.done()
    assert os.path.exists(desk.path / "ready-3-5-1")
    desk.drain(None)
    assert answer.result(20) is False
    assert desk.ready_workers(3) == 0


def test_ready_before_the_own_agent_has_asked(desk: Desk, worker: ThreadPoolExecutor) -> None:
    """The other ranks took this one along."""
    answer: Future[bool] = worker.submit(ready_to_drain)
    until(lambda: desk.ready_workers(3) == 1)
    desk.drain("node-3")
    assert desk.ready_workers(3) == 1
    assert not answer.done()
    desk.drain(None)
    assert answer.result(20) is False


def test_nobody_asks(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launched, "APPEAR_S", 0.0)
    assert ready_to_drain() is False
    assert desk.ready_workers(3) == 0


def test_the_answer_is_given_again_if_it_was_taken_away(desk: Desk, worker: ThreadPoolExecutor) -> None:
    """Called off and asked anew between two looks of the worker."""
    desk.drain("node-3")
    answer: Future[bool] = worker.submit(ready_to_drain)
    until(lambda: desk.ready_workers(3) == 1)
    (desk.path / "ready-3-5-1").unlink()
    until(lambda: desk.ready_workers(3) == 1)
    desk.close()
    assert answer.result(20) is False, "without a desk there is nobody to wait for"


@pytest.mark.parametrize("timeout_s", [0, 0.1])
def test_time_is_over(desk: Desk, timeout_s: float) -> None:
    assert ready_to_drain(timeout_s) is False
    desk.drain("node-3")
    assert ready_to_drain(timeout_s) is True
    assert desk.ready_workers(3) == 0


def test_a_timeout_that_is_none(desk: Desk) -> None:
    with pytest.raises(UsageError) as caught:
        ready_to_drain(-1)
    assert caught.value.code == "bad_seconds"


def test_an_answer_that_cannot_be_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "desk").touch()
    for name, value in _environment(tmp_path / "desk").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnavailableError) as caught:
        ready_to_drain()
    assert caught.value.code == "desk_unwritable"


def test_a_waiting_worker_can_be_ended(desk: Desk) -> None:
    """That is how it usually goes on: the agent sends SIGTERM."""
    desk.drain("node-3")
    script = "import holdfast; holdfast.ready_to_drain()"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        try:
            until(lambda: desk.ready_workers(3) == 1)
            process.terminate()
            assert process.wait(20) == -15
        finally:
            process.kill()


# A publisher of a later round fences that of an earlier one, without being told anything

_TRAINER = """
import json, pathlib, sys
from holdfast import Channel, HoldfastError
from holdfast.channel.payload import Payload
from holdfast.channel.sources import BytesSource

publisher = Channel(sys.argv[1]).publisher()
for line in sys.stdin:
    verb, _, number = line.strip().partition(" ")
    try:
        if verb == "open":
            publisher.open()
        else:
            files = (("a.bin", BytesSource([number.encode()])),)
            publisher.publish_payload(int(number), Payload(files=files, kind="test"))
        print("ok", publisher.cycle, publisher.term.job, publisher.term.round, flush=True)
    except HoldfastError as error:
        print(error.code, flush=True)
"""


class _Trainer:
    def __init__(self, channel: pathlib.Path, environment: dict[str, str]) -> None:
        words = [sys.executable, "-c", _TRAINER, str(channel)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(words, env={**os.environ, **environment}, text=True, **pipes)

    def __call__(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.mark.usefixtures("alone")
def test_a_later_rounds_publisher_fences_earlier_ones(tmp_path: pathlib.Path) -> None:
    trainers = [_Trainer(tmp_path / "channel", _environment(number=number)) for number in (1, 2, 1)]
    earlier, later, late = trainers
    try:
        assert earlier("open") == "ok 1 run42 1000001"
        assert earlier("publish 4").startswith("ok 1")
        assert later("open") == "ok 2 run42 1000002", "at once: no lease is waited for"
        assert earlier("publish 8") == "fenced"
        assert later("publish 8").startswith("ok 2")
        assert late("open") == "superseded"
    finally:
        for trainer in trainers:
            trainer.process.kill()
            trainer.process.communicate()

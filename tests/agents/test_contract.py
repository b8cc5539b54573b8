"""What the plug-in takes for granted of torchrun, one fact a test, with a rendezvous of our own that does nothing else.

A torch that breaks one of these names it here; `holdfast.rendezvous.handler` is what rests on them.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from tests.support.jobs import ROOT

pytestmark = [pytest.mark.agents, pytest.mark.timeout(120)]

SCRIPT = ROOT / "tests" / "support" / "throwaway.py"


class Torchrun:
    """A stock torchrun whose rendezvous is tests/support/throwaway.py, found by its entry point."""

    def __init__(self, root: pathlib.Path, behaviour: str, max_restarts: int) -> None:
        info = root / "throwaway-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: throwaway\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[torchrun.handlers]\nthrowaway = tests.support.throwaway:throwaway\n")
        self._calls = root / "calls.jsonl"
        self._calls.touch()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "TORCH"))}
        environment |= {
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(root))),
            "THROWAWAY": behaviour,
            "THROWAWAY_CALLS": str(self._calls),
        }
        words = ["--rdzv-backend=throwaway", "--nnodes=1", f"--max-restarts={max_restarts}", str(SCRIPT)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def calls(self, name: str) -> list[dict[str, Any]]:
        said = [json.loads(line) for line in self._calls.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [each for each in said if each["call"].startswith(name)]

    def wait_for(self, name: str, number: int = 1) -> None:
        while len(self.calls(name)) < number:
            assert self.process.poll() is None, self.output()
            threading.Event().wait(0.05)

    def output(self) -> str:
        return self.process.communicate(timeout=60)[0]

    def code(self) -> int:
        print(self.output())
        return self.process.returncode


@pytest.fixture
def torchrun(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Any:
    made: list[Torchrun] = []

    def start(behaviour: str, max_restarts: int = 0) -> Torchrun:
        made.append(Torchrun(tmp_path, behaviour, max_restarts))
        return made[-1]

    yield start
    for each in made:
        if each.process.poll() is None:
            each.process.terminate()  # it ends its workers
            each.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def rung(tmp_path_factory: pytest.TempPathFactory) -> Torchrun:
    """A run without restarts, whose workers were ended twice because somebody waited; it succeeded."""
    run = Torchrun(tmp_path_factory.mktemp("rung"), "rings", max_restarts=0)
    assert run.code() == 0
    return run


@pytest.mark.parametrize("code", [0, 93])
def test_a_backend_is_found_by_its_entry_point_and_systemexit_from_next_rendezvous_is_the_exit_code(
    torchrun: Any, code: int
) -> None:
    run = torchrun(f"leaves {code}")
    assert run.code() == code
    assert len(run.calls("next_rendezvous")) == 1
    assert not run.calls("worker")


def test_a_signal_handler_that_raises_systemexit_ends_an_agent_that_waits_in_next_rendezvous(torchrun: Any) -> None:
    run = torchrun("parks")
    run.wait_for("next_rendezvous")
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.code() == 17


def test_num_nodes_waiting_is_polled_while_workers_run_and_restarts_them_without_being_charged(rung: Torchrun) -> None:
    assert [call["round"] for call in rung.calls("next_rendezvous")] == [1, 2, 3]
    assert [call["round"] for call in rung.calls("num_nodes_waiting")][:6] == [1, 1, 1, 2, 2, 2]


def test_signal_handlers_are_installed_at_each_start_of_workers(rung: Torchrun) -> None:
    polls = rung.calls("num_nodes_waiting")
    assert {call["round"] for call in polls} >= {1, 2}
    assert not any(call["ours"] for call in polls)


def test_the_environment_and_the_bootstrap_address_of_each_round_reach_its_workers(rung: Torchrun) -> None:
    workers = rung.calls("worker")
    assert [worker["round"] for worker in workers] == [1, 2, 3]
    assert workers[-1]["environment"] == {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29999",
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }


def test_workers_of_one_kind_need_no_store_and_the_exit_barrier_calls_add_then_wait(torchrun: Any) -> None:
    run = torchrun("succeeds")
    assert run.code() == 0
    names = [call["call"] for call in run.calls("store.")]
    assert [name for name in names if name != "store.set_timeout"] == ["store.add", "store.wait"]
    assert run.calls("shutdown")[0]["error"] is None


def test_systemexit_from_the_exit_barriers_wait_is_the_exit_code(torchrun: Any) -> None:
    run = torchrun("barrier")
    assert run.code() == 5


def test_a_failed_worker_brings_the_agent_back_to_next_rendezvous_as_long_as_it_has_restarts(torchrun: Any) -> None:
    run = torchrun("fails once", max_restarts=1)
    assert run.code() == 0
    assert [call["round"] for call in run.calls("next_rendezvous")] == [1, 2]


def test_at_0_restarts_the_agent_leaves_without_asking_and_shutdown_sees_childfailederror(torchrun: Any) -> None:
    run = torchrun("fails", max_restarts=0)
    assert run.code() == 1
    assert len(run.calls("next_rendezvous")) == 1
    assert [call["error"] for call in run.calls("shutdown")] == ["ChildFailedError"]


def test_shutdown_is_not_called_after_a_signal(torchrun: Any) -> None:
    run = torchrun("runs")
    run.wait_for("num_nodes_waiting")
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.code() != 0
    assert not run.calls("shutdown")

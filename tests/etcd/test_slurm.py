"""The example for Slurm as it is, with stand-ins for srun and scontrol that start everything on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.etcds import LONG_S, binary, free_ports, until

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(300)]

HERE = pathlib.Path(__file__).resolve().parent
SCRIPT = HERE.parents[1] / "examples" / "slurm" / "train.sbatch"
COUNTING = HERE.parent / "support" / "counting.py"
NODES = [f"127.0.0.{number}" for number in range(1, 5)]  # three train, one is the spare
SEATS = 3
JOB = "77"


class Batch:
    """One start of the batch script by Slurm."""

    def __init__(self, root: pathlib.Path, restart: int) -> None:
        peer, client = free_ports(2)
        ours = ("HOLDFAST_", "SLURM", "TORCH", "PYTEST_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = os.pathsep.join([str(HERE / "slurm"), str(pathlib.Path(sys.executable).parent), kept["PATH"]])
        slurm = {"SLURM_JOB_ID": JOB, "SLURM_RESTART_COUNT": str(restart), "SLURM_JOB_NODELIST": ",".join(NODES)}
        options = {"WORKERS_PER_NODE": "1", "DRAIN_S": "30", "ETCD": binary(), "EVENTS": f"{root}/events/"}
        ports = {"PEER_PORT": str(peer), "CLIENT_PORT": str(client)}
        places = {"PATH": path, "TMPDIR": str(root / "tmp"), "REQUEUED": str(root / "requeued")}
        (root / "tmp").mkdir(exist_ok=True)
        (root / "events").mkdir(exist_ok=True)
        self.root = root
        self.attempt = f"{JOB}.{restart}"
        self.log = root / f"log-{restart}"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                ["bash", str(SCRIPT), str(COUNTING), str(root)],
                env={**kept, **slurm, **options, **ports, **places, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def round_of(self, at_least: int) -> list[dict[str, Any]]:
        """The workers of a round from this number on, once all of them have begun."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            assert self._process.poll() is None, self.log.read_text()
            texts = [path.read_text() for path in self.root.glob(f"began-{self.attempt}-*")]
            workers = [json.loads(text) for text in texts if text]
            newest = max((worker["round"] for worker in workers), default=0)
            found[:] = [worker for worker in workers if worker["round"] == newest >= at_least]
            return len(found) == SEATS

        until(look, f"no round {at_least}: {self.log.read_text()}")
        return sorted(found, key=lambda worker: int(worker["rank"]))

    def terminate(self) -> None:
        """As --signal=B:TERM@120 does: the script alone."""
        self._process.send_signal(signal.SIGTERM)

    def code(self) -> int:
        try:
            return self._process.wait(LONG_S)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(self.log.read_text()) from error

    def end(self) -> None:
        """Nothing of it may be left; what is, is killed."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(LONG_S)


@contextlib.contextmanager
def batch(root: pathlib.Path, restart: int = 0) -> Iterator[Batch]:
    one = Batch(root, restart)
    try:
        yield one
    finally:
        one.end()


def test_a_lost_node_costs_a_round_and_the_job_ends_well(tmp_path: pathlib.Path) -> None:
    with batch(tmp_path) as one:
        first = one.round_of(1)
        assert [(worker["rank"], worker["world"]) for worker in first] == [(0, 3), (1, 3), (2, 3)]
        os.kill(first[1]["agent"], signal.SIGKILL)
        one.round_of(first[0]["round"] + 1)
        (tmp_path / "finish").touch()
        assert one.code() == 0, one.log.read_text()
    assert not (tmp_path / "requeued").exists()
    assert len(list((tmp_path / "events").glob("agent-*"))) == len(NODES)
    assert list((tmp_path / "tmp").glob("holdfast-etcd-*")) == []


def test_before_the_time_limit_it_saves_and_the_next_start_goes_on(tmp_path: pathlib.Path) -> None:
    with batch(tmp_path) as one:
        one.round_of(1)
        one.terminate()
        assert one.code() == 75, one.log.read_text()
    assert (tmp_path / "requeued").read_text() == f"{JOB}\n"
    saved = [int((tmp_path / f"saved-{rank}").read_text()) for rank in range(SEATS)]
    with batch(tmp_path, restart=1) as again:
        begun = [worker["step"] for worker in again.round_of(1)]
        assert begun == saved
        assert min(saved) > 0
        (tmp_path / "finish").touch()
        assert again.code() == 0, again.log.read_text()
    assert (tmp_path / "requeued").read_text() == f"{JOB}\n"

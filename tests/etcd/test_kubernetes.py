"""The shell of the Kubernetes example as it is, without Kubernetes: a pod that is sent away has to come back."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support import manifests
from tests.support.etcds import LONG_S, Etcd, until

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(300)]

COUNTING = pathlib.Path(__file__).resolve().parents[1] / "support" / "counting.py"
ENDPOINT = "etcd://etcd-0.etcd:2379,etcd-1.etcd:2379,etcd-2.etcd:2379"


class Pods:
    """The pods of the Job, by index; each life of one is a process group of its own."""

    def __init__(self, root: pathlib.Path, etcd: Etcd) -> None:
        self._root = root
        self._endpoint = f"etcd://127.0.0.1:{etcd.port}"
        self._all: list[subprocess.Popen[bytes]] = []

    def start(self, index: int) -> subprocess.Popen[bytes]:
        """A pod of this index, with a /tmp of its own."""
        (self._root / f"pod-{index}-leaving").unlink(missing_ok=True)
        pod = subprocess.Popen(
            ["/bin/bash", "-c", self._script("trainer/command", index)],
            env=self._environment(index),
            stdin=subprocess.DEVNULL,
            stdout=(self._root / f"log-{index}").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._all.append(pod)
        return pod

    def send_away(self, index: int, pod: subprocess.Popen[bytes]) -> int:
        """What the kubelet does when a pod is evicted: the hook, then SIGTERM. The container's exit code."""
        script = self._script("trainer/preStop", index)
        subprocess.run(["/bin/bash", "-c", script], env=self._environment(index), check=True, timeout=LONG_S)
        with contextlib.suppress(ProcessLookupError):
            pod.send_signal(signal.SIGTERM)
        return pod.wait(LONG_S)

    def nodes_of_a_round(self, ranks: int, *, after: int = 0) -> dict[int, str]:
        """Rank -> node, of a round later than `after` that runs; and the round, as rank -1."""
        found: dict[int, str] = {}

        def look() -> bool:
            told = [json.loads(path.read_text() or "{}") for path in self._root.glob("began-*")]
            newest = max((one["round"] for one in told if one), default=0)
            found.clear()
            found.update({one["rank"]: one["node"] for one in told if one and one["round"] == newest > after})
            return len(found) == ranks

        until(look, f"no round after {after}: {self.logs()}")
        return found

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self._root.glob("log-*")))

    def end(self) -> None:
        for pod in self._all:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pod.pid, signal.SIGKILL)
            pod.wait(LONG_S)

    def _script(self, name: str, index: int) -> str:
        text = manifests.scripts()[name].replace(ENDPOINT, self._endpoint)
        text = text.replace("/tmp/leaving", str(self._root / f"pod-{index}-leaving"))
        text = text.replace("--nproc-per-node 8", "--nproc-per-node 1")
        return re.sub(r"train\.py .*(?= &)", f"{COUNTING} {self._root}", text)

    def _environment(self, index: int) -> dict[str, str]:
        ours = ("HOLDFAST_", "SLURM", "TORCH", "PYTEST_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), kept["PATH"]])
        pod = {"INDEX": str(index), "ATTEMPT": "0f6b1c3e-job", "POD_IP": "127.0.0.1"}
        return {**kept, **pod, "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def pods(tmp_path: pathlib.Path, own_etcd: Etcd) -> Iterator[Pods]:
    made = Pods(tmp_path, own_etcd)
    try:
        yield made
    finally:
        made.end()


def test_a_node_that_is_sent_away_is_replaced_and_comes_back(pods: Pods, tmp_path: pathlib.Path) -> None:
    lives = {index: pods.start(index) for index in range(3)}
    assert pods.nodes_of_a_round(2) == {0: "trainer-0", 1: "trainer-1"}  # by --infra-rank

    assert pods.send_away(1, lives[1]) == 143, pods.logs()  # drained, which alone would be 0: "index done"
    assert pods.nodes_of_a_round(2, after=1) == {0: "trainer-0", 1: "trainer-2"}
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}

    lives[1] = pods.start(1)
    assert pods.send_away(1, lives[1]) == 143, pods.logs()  # a spare by now, or just coming
    lives[1] = pods.start(1)
    (tmp_path / "finish").touch()
    codes = [lives[index].wait(LONG_S) for index in range(3)]
    assert codes == [0, 0, 0], pods.logs()

"""`holdfast control` as members of an etcd, and `holdfast members` on one that has lost a member."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from holdfast.cli.main import main
from holdfast.core.membership import Beat, Control, Node, Policy, Roster, State, encode, round_key
from holdfast.rendezvous.founding import Keys
from holdfast.rendezvous.kv import KeyValueStore
from holdfast.rendezvous.open import open_store
from tests.support.etcds import binary, free_ports, three_etcds

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(180)]
LONG_S = 60.0
ENDLESS_S = 3600.0


def test_three_members_make_a_store_and_end_when_told(tmp_path: pathlib.Path) -> None:
    ports = free_ports(6)
    members = [f"m{n}=127.0.0.1:{ports[2 * n]}:{ports[2 * n + 1]}" for n in range(3)]
    endpoint = "etcd://" + ",".join(f"127.0.0.1:{port}" for port in ports[1::2])
    common = [word for member in members for word in ("--member", member)]
    common += ["--etcd-binary", binary(), "--data", str(tmp_path), "--token", "cli-test", "--json"]
    with ExitStack() as stack:
        processes = []
        for number in range(3):
            command = [sys.executable, "-m", "holdfast.cli.main", "control", "--name", f"m{number}", *common]
            log = stack.enter_context((tmp_path / f"log-{number}").open("wb"))
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log))
            stack.callback(process.kill)
            processes.append(process)
        for number, process in enumerate(processes):
            assert process.stdout is not None
            told = {"endpoint": endpoint, "address": f"127.0.0.1:{ports[2 * number + 1]}", "name": f"m{number}"}
            assert json.loads(process.stdout.readline()) == told
        store = open_store(endpoint, "job", timeout_s=LONG_S)
        cell = store.compare_and_set("control", 0, b"x")
        assert store.read("control") == cell
        store.close()
        for process in processes:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(LONG_S) for process in processes] == [0, 0, 0]


def paper_job(store: KeyValueStore) -> None:
    """A job of one node that trains, on paper: nobody beats."""
    keys, plan = Keys(None), "0a1b2c3d"
    policy = Policy(lease_s=ENDLESS_S)
    store.put_listed(keys.nodes, "n0.a", encode(Node(node="n0", incarnation="a")))
    store.put_listed(keys.beats, "n0.a", encode(Beat(count=1, state=State.RUNNING, round=1, plan=plan)))
    roster = Roster(round=1, plan=plan, seats=("n0.a",))
    store.put({keys.plain(round_key(1, plan, "roster")): encode(roster)})
    control = Control(
        run="train", attempt="0", job="train", policy=policy, term=1, coordinator="n0.a", nonce="x", round=1, plan=plan
    )
    store.compare_and_set(keys.control, 0, encode(control))


def test_members_says_that_the_store_has_lost_a_member(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.rendezvous.view.WATCH_S_MAX", 0.2)  # nobody beats: there is nothing to wait for
    with three_etcds(tmp_path) as members:
        endpoint = "etcd://" + ",".join(f"127.0.0.1:{member.port}" for member in members)
        store = open_store(endpoint, "train", timeout_s=LONG_S)
        paper_job(store)
        words = ["members", "--endpoint", endpoint, "--run", "train"]
        assert main(words) == 0
        assert "3 of 3 etcd members answer" in capsys.readouterr().out
        members[1].kill()
        assert main(words) == 3
        out = capsys.readouterr().out
        assert "store" in out
        assert "! degraded: 2 of 3 etcd members answer" in out
        assert main([*words, "--json"]) == 3
        said = json.loads(capsys.readouterr().out)
        assert said["store_health"] == {"answering": 2, "members": 3}
        assert said["problems"] == ["degraded: 2 of 3 etcd members answer"]
        members[1].start("", wait=False)
        members[1].wait()
        assert main(words) == 0
        store.close()

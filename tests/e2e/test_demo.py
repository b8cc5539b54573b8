"""The demo in small: what it claims, that its claims can fail, and that it leaves no process behind."""

from __future__ import annotations

import copy
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from examples.demo import report
from examples.demo.cast import ROOT, Cast
from examples.demo.main import Demo
from examples.demo.plan import FENCED, QUICK, SERVERS, Places
from tests.support.channels import until


@pytest.mark.timeout(300)
def test_the_demo_in_small(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One test, since playing it takes a while: its claims hold, its channel is in order, and each claim can fail."""
    places = Places(tmp_path / "demo")
    places.write_plan(QUICK)
    cast = Cast(places)
    demo = Demo(places, QUICK, cast)
    try:
        demo.play()
    finally:
        cast.end_all()
    code, said = report.conclude(places, QUICK, demo.witnessed, 0.0), capsys.readouterr().out
    assert _broken(said) == []
    assert code == 0
    assert "every claim holds" in said
    _check_channel(demo)
    for tamper, claim in TAMPERED.items():
        copied, witnessed = Places(tmp_path / tamper.__name__), copy.deepcopy(demo.witnessed)
        shutil.copytree(places.root / "reports", copied.root / "reports")
        shutil.copytree(places.channel / "events", copied.events)
        tamper(copied, witnessed)
        assert report.conclude(copied, QUICK, witnessed, 0.0) == 1, tamper.__name__
        broken = _broken(capsys.readouterr().out)
        assert any(claim in line for line in broken), (tamper.__name__, broken)


def _broken(said: str) -> list[str]:
    """The claims that did not hold."""
    return [line for line in said.splitlines() if line.startswith("  NO ")]


def _check_channel(demo: Demo) -> None:
    """What the channel says, without the demo's own report."""
    assert demo.witnessed.codes["trainer-2"] == FENCED
    steps = {(version.cycle, version.step) for version in demo.channel.observer().versions()}
    assert (3, QUICK.steps) in steps
    assert (1, QUICK.kill_at) not in steps
    assert (2, QUICK.zombie_at) not in steps
    assert list((demo.places.channel / "staging").iterdir()) == []
    assert not any(demo.places.stage.glob("latecomer/versions/*"))
    with demo.channel.consumer("afterwards", stage=demo.places.root / "afterwards") as consumer:
        held = consumer.take(timeout_s=20.0)
        assert held is not None
        assert held.step == QUICK.steps
        assert held.metadata["final"]
        measured = [said for said in demo.cast.all[SERVERS[1]].said("used") if said.version == str(held)]
        assert held.metadata["loss"] == pytest.approx(measured[-1].loss, abs=1e-3)


Line = dict[str, Any]


def _edit(path: pathlib.Path, change: Callable[[Line], Line]) -> None:
    lines = [change(json.loads(line)) for line in path.read_bytes().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _append(path: pathlib.Path, **line: object) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _loss_differs(places: Places, witnessed: report.Witnessed) -> None:
    _edit(places.report(SERVERS[1]), lambda line: line | {"loss": line.get("loss", 0) + 0.01})


def _loss_does_not_fall(places: Places, witnessed: report.Witnessed) -> None:
    for name in SERVERS:
        _edit(places.report(name), lambda line: line | {"loss": 5.0} if line["event"] == "used" else line)


def _not_as_trained(places: Places, witnessed: report.Witnessed) -> None:
    _edit(places.report("trainer-3"), lambda line: line | {"loss": line.get("loss", 0) + 0.01})


def _other_weights(places: Places, witnessed: report.Witnessed) -> None:
    _edit(places.report(SERVERS[1]), lambda line: line | {"made_by": ["00000000-00000000"]})


def _not_all_the_same_weights(places: Places, witnessed: report.Witnessed) -> None:
    _edit(places.report(SERVERS[0]), lambda line: line | {"made_by": [*line.get("made_by", []), "another"]})


def _one_refusal(places: Places, witnessed: report.Witnessed) -> None:
    _append(places.report(SERVERS[1]), event="refused", reason="404")


def _no_rewind(places: Places, witnessed: report.Witnessed) -> None:
    for path in places.events.glob(f"consumer-{SERVERS[0]}-*"):
        _edit(path, lambda line: line | {"reason": "next of the lineage"})


def _served_what_was_taken_back(places: Places, witnessed: report.Witnessed) -> None:
    lost = f"c000001-s{QUICK.kill_at - QUICK.publish_every:08d}-00abcdef"
    _append(places.report(SERVERS[0]), event="used", version=lost, completions=["", "", ""])


def _not_repeated(places: Places, witnessed: report.Witnessed) -> None:
    _edit(places.report("trainer-2"), lambda line: line | {"loss": line.get("loss", 0) + 0.01})


def _zombie_seen(places: Places, witnessed: report.Witnessed) -> None:
    _append(places.report(SERVERS[0]), event="woke", version=f"c000002-s{QUICK.zombie_at:08d}-00abcdef")


def _zombie_not_told(places: Places, witnessed: report.Witnessed) -> None:
    witnessed.codes["trainer-2"] = 0


def _torn_seen(places: Places, witnessed: report.Witnessed) -> None:
    version = f"c000001-s{QUICK.kill_at:08d}-00abcdef"
    _append(places.events / "x.jsonl", time="", clock_s=0.0, process="x", event="given", version=version)


def _held_was_swept(places: Places, witnessed: report.Witnessed) -> None:
    witnessed.frozen_holds = dict.fromkeys(witnessed.frozen_holds, False)


def _damage_went_unnoticed(places: Places, witnessed: report.Witnessed) -> None:
    witnessed.late_refused = {}


def _server_ended_with_its_sync(places: Places, witnessed: report.Witnessed) -> None:
    witnessed.served_alone[SERVERS[1]] = ""


def _left_half_done(places: Places, witnessed: report.Witnessed) -> None:
    witnessed.garbage = "adapter_model.safetensors (1 bytes)"


def _sync_failed(places: Places, witnessed: report.Witnessed) -> None:
    witnessed.codes["sync-b"] = 1


TAMPERED: dict[Callable[[Places, report.Witnessed], None], str] = {  # what was tampered with -> which claim must fall
    _loss_differs: "both measured the same loss",
    _loss_does_not_fall: "the loss that inference-a measured fell",
    _not_as_trained: "the loss that the trainer measured",
    _other_weights: "made by the same weights",
    _not_all_the_same_weights: "made by the same weights",
    _one_refusal: "anything but 200",
    _no_rewind: "both rewinds",
    _served_what_was_taken_back: "both rewinds",
    _not_repeated: "repeats what was lost",
    _zombie_seen: "the zombie",
    _zombie_not_told: "the zombie",
    _torn_seen: "in the middle of a publish",
    _held_was_swept: "when it was frozen",
    _damage_went_unnoticed: "a damaged version",
    _server_ended_with_its_sync: "when sync has ended",
    _left_half_done: "unfinished",
    _sync_failed: "ended as it should",
}


def _processes(place: pathlib.Path) -> dict[int, list[str]]:
    """The live processes with `place` on their command line, and the words of that."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")  # a zombie has no command line: it has ended
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(place) in line:
            found[int(path.parent.name)] = line.split("\0")
    return found


def _first(place: pathlib.Path, role: str, num: int) -> int | None:
    """A process of this role, once there are so many processes of the demo beside its director."""
    words = _processes(place)
    return min((pid for pid in words if role in words[pid]), default=None) if len(words) > num else None


@pytest.mark.skipif(not pathlib.Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("number", "role", "num"),
    [
        (signal.SIGINT, "model", 2),
        (signal.SIGTERM, "model", 2),
        (signal.SIGKILL, "serve", 3),  # a trainer and two servers
    ],
)
@pytest.mark.timeout(300)
def test_whatever_ends_the_demo_ends_all_of_its_processes_the_frozen_ones_too(
    tmp_path: pathlib.Path, number: signal.Signals, role: str, num: int
) -> None:
    place = tmp_path / "demo"
    command = [sys.executable, "-m", "examples.demo.main", "--quick", "--keep", str(place)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as demo:
        try:
            frozen = until(lambda: _first(place, role, num), timeout_s=120.0)
            os.kill(frozen, signal.SIGSTOP)
            until(lambda: pathlib.Path(f"/proc/{frozen}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            demo.send_signal(number)
            assert demo.wait() == (-number if number == signal.SIGKILL else 128 + number)
            until(lambda: not _processes(place))
        finally:
            demo.kill()

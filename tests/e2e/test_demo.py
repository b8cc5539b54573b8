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
    assert report.conclude(places, QUICK, demo.witnessed, 0.0) == 0
    assert "every claim holds" in capsys.readouterr().out
    _check_channel(demo)
    for tamper in TAMPERED:
        copied, witnessed = Places(tmp_path / tamper.__name__), copy.deepcopy(demo.witnessed)
        shutil.copytree(places.root / "reports", copied.root / "reports")
        shutil.copytree(places.channel / "events", copied.channel / "events")
        tamper(copied, witnessed)
        assert report.conclude(copied, QUICK, witnessed, 0.0) == 1, tamper.__name__
        assert "  NO " in capsys.readouterr().out


def _check_channel(demo: Demo) -> None:
    """What the channel says, without the demo's own report."""
    assert demo.witnessed.codes["trainer-2"] == FENCED
    steps = {(version.cycle, version.step) for version in demo.channel.observer().versions()}
    assert (3, QUICK.steps) in steps
    assert (1, QUICK.kill_at) not in steps
    assert (2, QUICK.zombie_at) not in steps
    assert list((demo.places.channel / "staging").iterdir()) == []
    assert not any(demo.places.stage.glob("inference-*/versions/*"))
    with demo.channel.consumer("afterwards", stage=demo.places.root / "afterwards") as consumer:
        held = consumer.take(timeout_s=20.0)
        assert held is not None
        assert held.step == QUICK.steps
        assert held.metadata == {"final": True}


def _edit(path: pathlib.Path, change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    lines = [change(json.loads(line)) for line in path.read_bytes().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _loss_differs(places: Places, witnessed: report.Witnessed) -> None:
    _edit(places.report(SERVERS[1]), lambda line: line | {"loss": float(str(line.get("loss", 0))) + 0.01})


def _loss_does_not_fall(places: Places, witnessed: report.Witnessed) -> None:
    for name in SERVERS:
        _edit(places.report(name), lambda line: line | {"loss": 5.0} if line["event"] == "used" else line)


def _no_rewind(places: Places, witnessed: report.Witnessed) -> None:
    _edit(places.report(SERVERS[0]), lambda line: {key: line[key] for key in line if key != "rewound_from"})


def _zombie_seen(places: Places, witnessed: report.Witnessed) -> None:
    name = f"c000002-s{QUICK.zombie_at:08d}-00abcdef"
    with places.report(SERVERS[0]).open("a") as file:
        file.write(json.dumps({"event": "woke", "version": name}) + "\n")


def _zombie_not_told(places: Places, witnessed: report.Witnessed) -> None:
    witnessed.codes["trainer-2"] = 0


def _torn_seen(places: Places, witnessed: report.Witnessed) -> None:
    event = {"time": "", "clock_s": 0.0, "process": "x", "event": "given"}
    version = f"c000001-s{QUICK.kill_at:08d}-00abcdef"
    (places.channel / "events" / "x.jsonl").write_text(json.dumps(event | {"version": version}) + "\n")


def _held_was_swept(places: Places, witnessed: report.Witnessed) -> None:
    witnessed.frozen_holds = dict.fromkeys(witnessed.frozen_holds, False)


def _damage_went_unnoticed(places: Places, witnessed: report.Witnessed) -> None:
    witnessed.late_refused = {}


def _left_half_done(places: Places, witnessed: report.Witnessed) -> None:
    witnessed.garbage = "adapter_model.safetensors (1 bytes)"


def _server_failed(places: Places, witnessed: report.Witnessed) -> None:
    witnessed.codes["inference-b"] = 1


TAMPERED: tuple[Callable[[Places, report.Witnessed], None], ...] = (
    _loss_differs,
    _loss_does_not_fall,
    _no_rewind,
    _zombie_seen,
    _zombie_not_told,
    _torn_seen,
    _held_was_swept,
    _damage_went_unnoticed,
    _left_half_done,
    _server_failed,
)


def _processes(place: pathlib.Path) -> list[int]:
    """The live processes with `place` on their command line."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(place).encode() in path.read_bytes():  # a zombie has no command line: it has ended
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.skipif(not pathlib.Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_demo_ends_all_of_its_processes_the_frozen_ones_too(
    tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    place = tmp_path / "demo"
    command = [sys.executable, "-m", "examples.demo.main", "--quick", "--keep", str(place)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as demo:
        try:
            children = until(lambda: found if len(found := set(_processes(place)) - {demo.pid}) == 4 else None)
            frozen = min(children)
            os.kill(frozen, signal.SIGSTOP)
            until(lambda: pathlib.Path(f"/proc/{frozen}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            demo.send_signal(number)
            assert demo.wait() == (-number if number == signal.SIGKILL else 128 + number)
            until(lambda: not _processes(place))
        finally:
            demo.kill()

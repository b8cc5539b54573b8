"""Starts publishers, consumers and sweepers, and kills and freezes them at random.

By hand: `python -m tests.kill.driver --seed 7 --kills 300`. A seed fixes what is tried (who is killed, frozen and
started, in which order), never how the processes' instructions interleave.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import holdfast
from tests.kill.checks import Checker, Told
from tests.kill.journal import Reader
from tests.kill.roles import MAX_BYTES, RETENTION

ROOT = pathlib.Path(__file__).resolve().parents[2]
LEASE_S = 2.0
BOUND_S = 0.05
PATIENCE_S = 5.0
CHECK_S = 1.5
KILLS_PER_ROUND = 250
_NEVER_S = 3600.0


class Zygote:
    """The process that forks the others; see zygote.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill.zygote"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def order(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True)
class Slot:
    """One place in the crowd: who is started there, how long it is let live on average, and a long life's chance."""

    role: str
    name: str
    life_s: float
    long_s: float
    long_chance: float = 0.1
    spec: dict[str, Any] = field(default_factory=dict)


SLOTS = (
    Slot("publisher", "trainer", 0.25, 6.0, 0.05),
    Slot("sweeper", "sweeper", 0.5, 8.0, 0.12),
    Slot("sweeper", "sweeper", 3.0, 8.0),
    Slot("consumer", "staged-0", 0.25, 4.0, 0.1, {"staged": True}),
    Slot("consumer", "staged-1", 0.4, 4.0, 0.1, {"staged": True, "elsewhere": True}),
    Slot("consumer", "all-staged", 0.5, 4.0, 0.1, {"staged": True, "every": True}),
    Slot("consumer", "in-place-0", 4.0, 9.0, 0.3),
    Slot("consumer", "in-place-1", 6.0, 9.0, 0.3, {"elsewhere": True}),
    Slot("consumer", "all-in-place", 5.0, 9.0, 0.3, {"every": True}),
    Slot("consumer", "passer-by", 0.4, 5.0, 0.15, {"unique": True}),
)


@dataclass(eq=False)
class Living:
    pid: int
    slot: Slot
    until_s: float
    frozen_until_s: float | None = None


@dataclass
class Report:
    seed: int
    kills: int = 0
    freezes: int = 0
    started: int = 0
    ended: int = 0
    run_s: float = 0.0
    bytes_max: int = 0
    versions_max: int = 0
    sweep_s: list[float] = field(default_factory=list)
    count: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        words = ", ".join(f"{number} {word}" for word, number in sorted(self.count.items()))
        return (
            f"seed {self.seed}: {self.kills} kills and {self.freezes} freezes in {self.run_s:.0f} s "
            f"({self.kills / max(self.run_s, 0.001):.1f} kills/s); {self.started} processes, {self.ended} ended by "
            f"themselves; at most {self.versions_max} versions, {self.bytes_max / 2**20:.1f} MiB on disk; thorough "
            f"sweeps took {', '.join(f'{s:.1f}' for s in self.sweep_s)} s\n{words}"
        )


class Driver:
    """One channel below `base`, and the processes around it."""

    def __init__(self, base: pathlib.Path, seed: int) -> None:
        self._base = base
        self._rng = random.Random(seed)
        self._channel = base / "channel"
        for name in ("journals", "events", "stage", "errors", "local"):
            (base / name).mkdir()
        self._told = Told(Reader(base / "journals"))
        self._checker = Checker(self._channel, self._told, keep_recent=RETENTION.keep_recent, max_bytes=MAX_BYTES)
        self._zygote = Zygote()
        self._living: list[Living] = []
        self._round = 0
        self._number = 0
        self._resting = False
        self.report = Report(seed)

    def run(self, kills: int, limit_s: float) -> Report:
        """Kill at least `kills` times, in rounds; stop at the first problem, or when `limit_s` seconds are over."""
        began_s = time.monotonic()
        try:
            while self.report.kills < kills and not self.report.problems:
                self._storm(min(kills, self.report.kills + KILLS_PER_ROUND), began_s + limit_s)
                self._rest()
                if time.monotonic() - began_s > limit_s and self.report.kills < kills:
                    self.report.problems.append(f"only {self.report.kills} kills in {limit_s:.0f} s")
        finally:
            self._zygote.close()
        self.report.run_s = time.monotonic() - began_s
        self.report.count = self._told.count
        self.report.bytes_max, self.report.versions_max = self._checker.bytes_max, self._checker.versions_max
        return self.report

    # One round

    def _storm(self, kills: int, deadline_s: float) -> None:
        self._resting = False
        for slot in SLOTS:
            self._start(slot)
        check_s = 0.0
        while self.report.kills < kills and not self.report.problems and time.monotonic() < deadline_s:
            now_s = time.monotonic()
            for living in tuple(self._living):
                self._look_at(living, now_s)
            if now_s >= check_s:
                self._notice(self._zygote.order(do="ended")["ended"])
                self.report.problems += self._checker.while_they_run()
                check_s = now_s + CHECK_S
            threading.Event().wait(0.01)

    def _look_at(self, living: Living, now_s: float) -> None:
        if living.frozen_until_s is not None and now_s >= living.frozen_until_s:
            living.frozen_until_s = None
            self._signal(living, signal.SIGCONT)
        if now_s < living.until_s or living not in self._living:
            return
        chance = self._rng.random()
        if chance < 0.15 and living.frozen_until_s is None:
            # Its place is taken while it is frozen: a zombie, or two lives of one name. Some sleep longer than a lease.
            frozen_s = self._rng.choice((0.1, 0.5, 1.5 * LEASE_S))
            living.frozen_until_s = now_s + frozen_s
            living.until_s = living.frozen_until_s + self._rng.choice((0.02, 0.5))
            self._signal(living, signal.SIGSTOP)
            self.report.freezes += 1
            if self._rng.random() < 0.5:
                self._start(living.slot)
            return
        self._signal(living, signal.SIGKILL)
        if all(other.slot is not living.slot for other in self._living):
            self._start(living.slot)

    def _rest(self) -> None:
        """Kill everybody and see that one thorough sweep and one fresh consumer find all as it should be."""
        self._resting = True
        for living in tuple(self._living):
            self._signal(living, signal.SIGKILL)
        assert not self._living
        if self.report.problems:
            return
        self.report.problems += self._checker.at_rest()
        channel = holdfast.Channel(
            self._channel, visibility_bound_s=BOUND_S, lease_s=LEASE_S, events=self._base / "events"
        )
        began_s = time.monotonic()
        with channel.sweeper(RETENTION) as sweeper:
            sweeper.sweep(thorough=True)
        self.report.sweep_s.append(time.monotonic() - began_s)
        self.report.problems += self._checker.swept()
        newest = self._checker.newest()
        for stage in (None, self._base / "stage"):
            with channel.consumer("last", stage=stage, poll_s=0.1) as consumer:
                held = consumer.take(timeout_s=20.0 if newest is not None else 0.0)
                if str(held) != str(newest):
                    self.report.problems.append(f"a fresh consumer was given {held}, the newest is {newest}")

    # Processes

    def _start(self, slot: Slot) -> None:
        rng = self._rng
        long = rng.random() < slot.long_chance
        life_s = rng.uniform(0.5, 1.0) * slot.long_s if long else rng.expovariate(1 / slot.life_s)
        self._number += 1
        name = f"passer-by-{self._number}" if slot.spec.get("unique") else slot.name
        process = f"{slot.role}-{name}-{self._number:05d}"
        spec: dict[str, Any] = {
            "seed": rng.getrandbits(32),
            "place": str(self._channel),
            "events": str(self._base / "events"),
            "journal": str(self._base / "journals" / f"{process}.jsonl"),
            "stderr": str(self._base / "errors" / process),
            "lease_s": LEASE_S,
            "bound_s": BOUND_S,
            "patience_s": PATIENCE_S,
            "life_s": life_s
            if rng.random() < 0.1
            else _NEVER_S,  # some leave in order, about when they would be killed
            "elsewhere": slot.spec.get("elsewhere", False),
        }
        if slot.role == "publisher":
            self._round += 1
            spec |= {"round": self._round, "sweep": rng.random() < 0.7, "local": str(self._base / "local")}
        if slot.role == "consumer":
            stage = str(self._base / "stage") if slot.spec.get("staged") else None
            spec |= {"name": name, "every": slot.spec.get("every", False), "stage": stage, "pause_s": 0.05}
        answer = self._zygote.order(do="start", role=slot.role, spec=spec)
        self._living.append(Living(answer["pid"], slot, time.monotonic() + life_s))
        self.report.started += 1
        self._notice(answer["ended"])

    def _signal(self, living: Living, number: int) -> None:
        if living not in self._living:
            return  # it has ended by itself
        answer = self._zygote.order(do="signal", pid=living.pid, signal=number)
        if number == signal.SIGKILL and answer["status"] == -signal.SIGKILL:
            self.report.kills += 1
            self._living.remove(living)
        self._notice(answer["ended"])

    def _notice(self, ended: dict[str, int]) -> None:
        """Processes that ended by themselves. Another takes the place; a traceback is a problem."""
        for pid, status in ended.items():
            living = next(one for one in self._living if one.pid == int(pid))
            self._living.remove(living)
            self.report.ended += 1
            if status != 0:
                errors = [path.read_text() for path in (self._base / "errors").iterdir() if path.stat().st_size]
                self.report.problems.append(f"{living.slot} ended with status {status}: {errors[:3]}")
            elif not self._resting and all(other.slot is not living.slot for other in self._living):
                self._start(living.slot)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kill.driver")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--limit", type=float, default=280.0, help="seconds")
    parser.add_argument("--keep", type=pathlib.Path, help="an empty directory for channel, journals and events")
    call = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-kill-") as folder:
        report = Driver(call.keep or pathlib.Path(folder), call.seed).run(call.kills, call.limit)
    print(report)
    for problem in report.problems:
        print("PROBLEM:", problem)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())

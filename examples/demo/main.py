"""The main job in small, with everything that goes wrong in a long one. Nothing is downloaded.

    make demo                                     or: python -m examples.demo.main [--keep DIRECTORY] [--quick]

A trainer teaches a small language model's adapter to write like the documentation of Python's own library, and
publishes it every few steps. There are two inference hosts. On each, `holdfast serve` answers over HTTP, `holdfast
sync` brings it the versions while the training runs, on one host in place, on the other from verified copies, and a
client measures each version that is served. Meanwhile

  1. trainer 1 is killed (-9) in the middle of a publish. Trainer 2 resumes from the last checkpoint, which is older
     than the newest version: a rewind, which both servers follow;
  2. the host of inference-a is frozen while trainer 2 publishes version after version and keeps only the newest;
  3. trainer 2 is frozen in the middle of a publish and replaced by trainer 3; then it wakes up, a zombie, and goes on;
  4. sync is ended, and the servers go on without it;
  5. a bit flips in the newest version, and a host that comes late looks for something to load.

The exit code is 0 only if every claim of the last table held.
"""

from __future__ import annotations

import argparse
import pathlib
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import holdfast
from examples.demo import report
from examples.demo.cast import LIMIT_S, Cast, DemoFailed, Process
from examples.demo.host import Host, start_hosts
from examples.demo.plan import QUICK, SERVERS, Places, Plan

WEIGHTS = "adapter_model.safetensors"


class Demo:
    """The director: kills, freezes and wakes the others, and looks at the channel from outside."""

    def __init__(self, places: Places, plan: Plan, cast: Cast) -> None:
        self.places = places
        self.plan = plan
        self.cast = cast
        self.channel = holdfast.Channel(places.channel)
        self.witnessed = report.Witnessed()

    def play(self) -> None:
        plan, start = self.plan, self.cast.start
        steps = f"{plan.warm_up_steps} steps on the documentation strings of Python {platform.python_version()}"
        self.cast.say(f"a base model is made ({steps})")
        self.channel.open(create=True)
        base = start("base", "model")
        first = start("trainer-1", "trainer", 1, plan.kill_at)
        self.cast.wait_for("the base model", lambda: base.code == 0)
        a, b = start_hosts(self.cast, {SERVERS[0]: "off", SERVERS[1]: self.places.stage})
        self.places.servers_ready.touch()
        self.kill_in_the_middle(first, a, b)
        second = start("trainer-2", "trainer", 2, plan.zombie_at, plan.freeze_at)
        self.freeze_a_host(second, a, b)
        third = start("trainer-3", "trainer", 3)
        self.wake_the_zombie(second, a, b)
        self.cast.wait_for("the end", lambda: all(each.code is not None for each in (third, a.client, b.client)))
        self.end_sync_before_its_server(a, b)
        self.come_late(third)
        self.look_around()

    def kill_in_the_middle(self, trainer: Process, a: Host, b: Host) -> None:
        cast, step = self.cast, self.plan.kill_at
        last = step - self.plan.publish_every
        cast.wait_for("trainer 1 to stand in the middle of a publish", trainer.is_stopped)
        cast.wait_for("both servers to serve its last version", lambda: a.used(1, last) and b.used(1, last))
        self.witnessed.torn = self._staged(1)
        cast.say(f"trainer-1 stands in the middle of publishing step {step}; so far: {self.witnessed.torn}")
        cast.say("trainer-1 is killed (-9)")
        cast.may_fail(trainer)
        trainer.end()

    def freeze_a_host(self, trainer: Process, a: Host, b: Host) -> None:
        cast, before = self.cast, self.plan.freeze_at - self.plan.publish_every
        last = self.plan.zombie_at - self.plan.publish_every
        cast.wait_for("inference-a to follow trainer 2", lambda: a.used(2, before))
        a.freeze()
        began_s, holds = time.monotonic(), self._holds(a.name)
        cast.say(f"the host of {a.name} is frozen; it holds {report.names(holds)}")
        self.places.host_frozen.touch()
        cast.wait_for("trainer 2 to stand in the middle of a publish", trainer.is_stopped)
        cast.wait_for("inference-b to serve its last version", lambda: b.used(2, last))
        there = self._there()
        meanwhile = {said.version for said in trainer.said("published") if said.at_s > began_s}
        self.witnessed.frozen_s = time.monotonic() - began_s
        self.witnessed.frozen_holds = {version: version in there for version in holds}
        self.witnessed.frozen_published = len(meanwhile)
        self.witnessed.frozen_swept = len(meanwhile - there)
        cast.say(
            f"the host of {a.name} is woken after {self.witnessed.frozen_s:.0f} s; {len(meanwhile)} versions were "
            f"published and {len(meanwhile - there)} of these swept again"
        )
        a.wake()
        cast.wait_for("inference-a to go on", lambda: a.used(2, last))

    def wake_the_zombie(self, zombie: Process, a: Host, b: Host) -> None:
        cast = self.cast
        cast.say(f"trainer-2 is frozen in the middle of publishing step {self.plan.zombie_at}; trainer-3 takes over")
        cast.wait_for("both servers to follow trainer 3", lambda: a.used(3, 0) and b.used(3, 0))
        cast.say("trainer-2 wakes up and goes on publishing")
        cast.may_fail(zombie)
        zombie.signal(signal.SIGCONT)
        cast.wait_for("the zombie to end", lambda: zombie.code is not None)

    def end_sync_before_its_server(self, a: Host, b: Host) -> None:
        """Whoever updates the sync process of a host in production leaves its server as it is."""
        self.cast.terminate(a.sync, b.sync)
        self.cast.say("sync has ended on both hosts; the servers are asked once more")
        self.witnessed.served_alone = {host.name: host.serves_as_before() for host in (a, b)}
        self.cast.terminate(a.server, b.server)

    def come_late(self, trainer: Process) -> None:
        """A bit flips in the newest version; a host that comes late refuses it, and is given the one before."""
        newest = trainer.said("published")[-1].version
        late = self.channel.consumer("latecomer", stage=self.places.stage, patience_s=1.0)
        with _a_wrong_bit(self.places.channel / "versions" / newest / WEIGHTS), late:
            self.cast.say(f"a bit flips in {report.names([newest])}, and a host comes late")
            self.witnessed.late_given = str(late.take(timeout_s=LIMIT_S) or "")
            seen = self.channel.observer().consumers()
            records = [each.record for life, each in seen.items() if life.name == "latecomer" and each.record]
            self.witnessed.late_refused = {name: why for record in records for name, why in record.refused.items()}

    def look_around(self) -> None:
        """What is left in the channel when everybody has gone, after one more sweep."""
        with self.channel.sweeper(self.plan.retention) as sweeper:
            self.witnessed.left = sweeper.sweep().reasons
        self.witnessed.garbage = self._staged(None)
        self.witnessed.codes = {name: process.code for name, process in self.cast.all.items()}

    def _there(self) -> set[str]:
        return {str(version) for version in self.channel.observer().versions()}

    def _holds(self, name: str) -> set[str]:
        """What a consumer holds, as its file in the channel says."""
        seen = self.channel.observer().consumers()
        return {hold for life, each in seen.items() if life.name == name and each.record for hold in each.record.holds}

    def _staged(self, cycle: int | None) -> str:
        """The files that lie unfinished in staging/, of one cycle's publisher or of all, in words."""
        pattern = f"c{cycle:06d}-*" if cycle is not None else "*"
        places = sorted((self.places.channel / "staging").glob(pattern))
        files = [file for place in places for file in sorted(place.rglob("*")) if file.is_file()]
        return ", ".join(f"{file.name} ({file.stat().st_size:,} bytes)" for file in files)


@contextmanager
def _a_wrong_bit(path: pathlib.Path) -> Iterator[None]:
    """Inside of the `with` block one bit of the file is wrong."""
    right = path.read_bytes()
    wrong = bytearray(right)
    wrong[len(wrong) // 2] ^= 1
    path.write_bytes(wrong)
    try:
        yield
    finally:
        path.write_bytes(right)


def run(places: Places, plan: Plan) -> int:
    places.write_plan(plan)
    cast = Cast(places)
    demo = Demo(places, plan, cast)
    try:
        demo.play()
    except (DemoFailed, holdfast.HoldfastError) as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        return 1
    finally:
        cast.end_all()
    return report.conclude(places, plan, demo.witnessed, cast.took_s)


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIRECTORY", help="run in this new directory and keep it")
    parser.add_argument("--quick", action="store_true", help="a much smaller model, for tests")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else Plan()
    if arguments.keep is not None:
        if arguments.keep.exists():
            parser.error(f"{arguments.keep} is there already")
        places = Places(arguments.keep.resolve())
        code = run(places, plan)
        print(f"kept: {places.root}; `holdfast status {places.channel}` shows its channel")
        return code
    root = tempfile.mkdtemp(prefix="holdfast-demo-")
    try:
        return run(Places(pathlib.Path(root)), plan)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _terminated(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)

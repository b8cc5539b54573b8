"""The main job in small: an RL post-training that is broken on purpose while it trains, and goes on.

    make demo                     or: python -m examples.demo.main [--keep DIRECTORY] [--faults LIST] …

Two trainer nodes and a spare under `holdfast run`, an orchestrator, two inference servers with `holdfast sync` beside
them, one channel: the scripts are those of `examples/rl`, unchanged. Meanwhile (`--faults`, in this order)

    server   an inference server is killed (-9), and started again
    kill     the trainer's first node is killed (-9), agent and workers, in the middle of a publish
    stall    the orchestrator hangs while the trainer publishes on
    corrupt  a version with a wrong bit is planted as the newest of all
    zombie   the trainer's first node freezes in the middle of a publish, is replaced, wakes up and goes on publishing
    member   (with --store etcd) one of the three members of the store is killed (-9)

The exit code is 0 only if every claim of the last table holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from types import FrameType

import holdfast
from examples.demo.faults import Faults
from examples.demo.processes import LIMIT_S, Cast, DemoFailed
from examples.demo.stage import HOSTS, NODES, Options, Stage
from examples.demo.summary import claims, figures
from examples.demo.watching import Watch
from examples.rl.config import Config, Run

# Each with the part of the training after which it happens.
FAULTS = {"server": 0.08, "kill": 0.2, "stall": 0.4, "corrupt": 0.5, "member": 0.55, "zombie": 0.6}
QUICK = Config(steps=30, learning_rate=2e-3)
KEPT_RUNS = 3


def play(run: Run, cast: Cast, options: Options, faults: list[str]) -> int:
    """The whole job; the demo's exit code."""
    stage = Stage(run, cast, options)
    cast.say(
        f"two trainer nodes and a spare, two servers ({options.engine}), an orchestrator; logs: {run.root / 'logs'}"
    )
    stage.make_base()
    cast.say("the base model is made")
    stage.set_up()
    watch = Watch(run, stage.trainer_channel)
    events = watch.channel.event_log("demo")
    breaker = Faults(stage, cast, watch, events)
    survived = []
    for fault in sorted(faults, key=FAULTS.__getitem__):
        step = max(2, round(FAULTS[fault] * run.config.steps))
        cast.wait_for(f"step {step}", lambda step=step: watch.reached(step))  # type: ignore[misc]
        survived.append(breaker.at(fault)())
        events.emit("survived", survived[-1])
        cast.say(f"survived: {survived[-1]}")
    cast.wait_for_ends("orchestrator", *NODES)
    cast.say("the training has ended")
    survived += [look() for look in breaker.later]
    cast.terminate(*(f"sync-{host}" for host in HOSTS), *(f"serve-{host}" for host in HOSTS), *stage.controls)
    events.close()
    return conclude(watch, cast, survived, breaker.planted)


def conclude(watch: Watch, cast: Cast, survived: list[str], planted: str) -> int:
    print("\nsurvived" if survived else "\nnothing was broken")
    for line in survived:
        print(f"  {line}")
    print(f"\n{figures(watch)}\n\nclaims")
    every = list(claims(watch, cast.all, planted))
    for claim in every:
        print(f"  {'yes' if claim.holds else 'NO ':3}  {claim.text}: {claim.evidence}")
    held = all(claim.holds for claim in every)
    print(f"\n{'every claim holds' if held else 'NOT every claim holds'}, in {cast.took_s:.0f} s")
    return 0 if held else 1


def report(watch_path: pathlib.Path, root: pathlib.Path) -> None:
    """The whole story as a page."""
    page = root / "report.html"
    words = ("report", str(watch_path), "-o", str(page))
    done = subprocess.run(
        [sys.executable, "-m", "holdfast.cli.main", *words], capture_output=True, text=True, check=False
    )
    print(f"report: {page}" if done.returncode == 0 else f"no report: {done.stderr.strip()}")


def run_demo(root: pathlib.Path, config: Config, options: Options, faults: list[str], limit_s: float) -> int:
    run = Run(root)
    (root / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    cast = Cast(root / "logs", limit_s)
    try:
        code = play(run, cast, options, faults)
    except (DemoFailed, holdfast.HoldfastError) as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        code = 1
    finally:
        left = cast.end_all()
    if left and code == 0:
        print(f"{len(left)} processes were still running", file=sys.stderr)
        code = 1
    report(options.trainer_channel or run.channel, root)
    print(f"kept: {root}; `holdfast status {options.trainer_channel or run.channel}` shows its end")
    return code


def new_root() -> pathlib.Path:
    """A directory for this run; of earlier ones only the newest stay."""
    prefix = f"holdfast-demo-{os.getuid()}-"
    mine = pathlib.Path(tempfile.gettempdir()).glob(f"{prefix}*")
    for old in sorted(mine, key=lambda path: path.stat().st_mtime)[: -(KEPT_RUNS - 1)]:
        shutil.rmtree(old, ignore_errors=True)
    return pathlib.Path(tempfile.mkdtemp(prefix=prefix))


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIRECTORY", help="run in this new directory")
    parser.add_argument("--engine", choices=("serve", "vllm"), default="serve", help="vllm: needs `make vllm-venv`")
    parser.add_argument("--store", choices=("tcp", "etcd"), default="tcp", help="etcd: needs an etcd binary")
    parser.add_argument("--faults", default="all", help="all, none, or some of them with commas")
    parser.add_argument("--steps", type=int, help="how long to train")
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer steps, for tests")
    parser.add_argument("--trainer-channel", type=pathlib.Path, help="where trainers see the channel")
    parser.add_argument("--server-channel", type=pathlib.Path, help="where servers see the same channel: another mount")
    parser.add_argument("--lease", type=float, metavar="S", help="silence after which a trainer's node is lost")
    parser.add_argument("--limit", type=float, metavar="S", default=LIMIT_S, help="for anything that is waited for")
    arguments = parser.parse_args()
    faults = {"all": [name for name in FAULTS if name != "member" or arguments.store == "etcd"], "none": []}.get(
        arguments.faults, arguments.faults.split(",")
    )
    if unknown := set(faults) - FAULTS.keys():
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    if "member" in faults and arguments.store != "etcd":
        parser.error("member needs --store etcd")
    if arguments.keep is not None and arguments.keep.exists():
        parser.error(f"{arguments.keep} is there already")
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True)
    root = arguments.keep.resolve() if arguments.keep is not None else new_root()
    config = QUICK if arguments.quick else Config()
    config = dataclasses.replace(config, steps=arguments.steps or config.steps)
    options = Options(
        engine=arguments.engine,
        store=arguments.store,
        lease_s=arguments.lease,
        trainer_channel=arguments.trainer_channel,
        server_channel=arguments.server_channel,
    )
    return run_demo(root, config, options, faults, arguments.limit)


def _terminated(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGINT, _terminated)
    sys.exit(main())

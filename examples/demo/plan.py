"""What the demo does at which step, and where on disk; the same for all of its processes."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import holdfast

JOB = "demo"
TRAINERS = ("trainer-1", "trainer-2", "trainer-3")
SERVERS = ("inference-a", "inference-b")
HELD_OUT = "held_out.json"  # beside the base model: rows of token ids that nothing is trained on
FENCED = 4  # exit code of a trainer that was told that it was replaced


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Steps are optimizer steps of the adapter's training.

    Attributes:
        kill_at: the first trainer is killed in the middle of publishing this step.
        zombie_at: the second trainer is frozen in the middle of publishing this step, replaced, and woken.
        freeze_at: before the second trainer publishes this step, inference-a's host is frozen, until `zombie_at`.
        linger_s: a client that is slow may ask for a version's name this long after a newer one was served.
        fall: by how much (nats per token) the held-out loss has to fall from the first version to the last.
    """

    characters: int = 900_000
    vocabulary: int = 1024
    width: int = 128
    layers: int = 2
    rank: int = 32
    batch: int = 16
    context: int = 64
    warm_up_steps: int = 60
    steps: int = 400
    publish_every: int = 20
    checkpoint_every: int = 60
    kill_at: int = 100
    zombie_at: int = 220
    freeze_at: int = 100
    linger_s: float = 10.0
    fall: float = 1.0

    def __post_init__(self) -> None:
        for step in (self.kill_at, self.zombie_at):  # else there is nothing to rewind
            assert not self.is_checkpoint(step - self.publish_every)

    def is_checkpoint(self, step: int) -> bool:
        return step % self.checkpoint_every == 0

    @property
    def retention(self) -> holdfast.Retention:
        """The newest version alone, and those that checkpoints name, so that there is always one to resume from."""
        return holdfast.Retention(keep_recent=1, keep_every=self.checkpoint_every)


QUICK = Plan(
    characters=150_000,
    vocabulary=512,
    width=64,
    layers=1,
    rank=16,
    batch=8,
    warm_up_steps=20,
    steps=96,
    publish_every=4,
    checkpoint_every=12,
    kill_at=20,
    zombie_at=80,
    freeze_at=24,
    linger_s=60.0,  # tests run on machines that are busy
    fall=0.1,
)


@dataclasses.dataclass(frozen=True)
class Places:
    """The directories of one run below `root`."""

    root: pathlib.Path

    @property
    def channel(self) -> pathlib.Path:
        return self.root / "channel"

    @property
    def events(self) -> pathlib.Path:
        return self.channel / "events"

    @property
    def base(self) -> pathlib.Path:
        return self.root / "base"

    @property
    def servers_ready(self) -> pathlib.Path:
        """Made by main once both hosts wait for versions; the trainer begins then."""
        return self.root / "servers-ready"

    @property
    def host_frozen(self) -> pathlib.Path:
        """Made by main once it has frozen the host of inference-a."""
        return self.root / "host-frozen"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.root / "checkpoints"

    @property
    def stage(self) -> pathlib.Path:
        return self.root / "stage"

    def report(self, process: str) -> pathlib.Path:
        return self.root / "reports" / f"{process}.jsonl"

    def log(self, process: str) -> pathlib.Path:
        return self.root / "logs" / f"{process}.log"

    @property
    def plan(self) -> pathlib.Path:
        return self.root / "plan.json"

    def write_plan(self, plan: Plan) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        for directory in (self.root / "reports", self.root / "logs", self.checkpoints):
            directory.mkdir()
        self.plan.write_text(json.dumps(dataclasses.asdict(plan), indent=1))

    def read_plan(self) -> Plan:
        return Plan(**json.loads(self.plan.read_text()))

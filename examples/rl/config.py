"""The settings that all roles of one run share, and where it keeps its files."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import holdfast

ADAPTER = "policy"  # the name under which sync serves the adapter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    Attributes:
        steps: optimizer steps of the policy.
        prompts, samples: a batch is this many prompts, each answered so many times: a group of GRPO.
        staleness_max: answers are used while their version is at most so many steps away from the step in training.
        ahead: so many batches may lie ready for the trainer.
        control_every: so often (in batches) the same prompts also go to the frozen base model.
        weight_max: importance weights are cut off here.
        ask_timeout_s: how long a prompt may take with all its retries (seconds).
    """

    steps: int = 60
    prompts: int = 8
    samples: int = 8
    staleness_max: int = 6
    ahead: int = 3
    checkpoint_every: int = 5
    control_every: int = 2
    rank: int = 8
    learning_rate: float = 7e-4
    weight_max: float = 2.0
    ask_timeout_s: float = 120.0
    width: int = 128
    layers: int = 2
    warm_up_steps: int = 250
    warm_up_batch: int = 64

    @property
    def retention(self) -> holdfast.Retention:
        """The two newest versions, and those that checkpoints name: a trainer that comes back resumes from one."""
        return holdfast.Retention(keep_recent=2, keep_every=self.checkpoint_every)


@dataclasses.dataclass(frozen=True)
class Run:
    """A directory that all machines of the run share."""

    root: pathlib.Path

    @property
    def config(self) -> Config:
        path = self.root / "config.json"
        return Config(**json.loads(path.read_text())) if path.exists() else Config()

    @property
    def base(self) -> pathlib.Path:
        return self.root / "base"

    @property
    def channel(self) -> pathlib.Path:
        return self.root / "channel"

    @property
    def batches(self) -> pathlib.Path:
        return self.root / "batches"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.root / "checkpoints"

"""A channel beside torchtitan's checkpoints; docs/recipes/torchtitan.md says how to put it there."""

from __future__ import annotations

import pathlib
import shutil
from dataclasses import dataclass
from typing import Any

from torch import distributed
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.checkpointer.base import MODEL
from torchtitan.components.checkpointer.dcp import AsyncMode

import holdfast

BESIDE = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")  # of hf_assets_path: what makes a version complete


class Lineage:
    """The newest version's name as part of the checkpoint: the same on all ranks."""

    def __init__(self) -> None:
        self.version = ""

    def state_dict(self) -> dict[str, Any]:
        return {"version": self.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.version = state["version"]


class PublishingCheckpointManager(CheckpointManager):
    """Publishes full weights in the Hugging Face format: at the start, every `publish_every` steps, and at the last."""

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        channel: str = "weights"
        """The channel's directory, on storage that all ranks share; what is being made lies beside it."""

        publish_every: int = 10
        """Steps between two versions."""

        keep_recent: int = 2
        """Versions that stay although nobody holds them."""

        drain_every: int = 10
        """Steps between two questions whether this node is to leave."""

    def __init__(self, config: Config, **parts: Any) -> None:
        super().__init__(config, **parts)
        if not self.enable:
            return
        if self.sd_adapter is None:
            raise ValueError("this model cannot be written in the Hugging Face format")
        self.lineage = Lineage()
        self.states["holdfast"] = self.lineage
        self.draining = False
        self._config = config
        self._publisher: Any = None
        self._outbox = pathlib.Path(config.channel).with_name("outbox")

    def _load(self, step: int = -1) -> bool:
        loaded: bool = super()._load(step)
        if distributed.get_rank() == 0:
            shutil.rmtree(self._outbox, ignore_errors=True)  # of a run that was killed
            retention = holdfast.Retention(keep_recent=self._config.keep_recent)
            channel = holdfast.Channel(self._config.channel)
            self._publisher = channel.publisher(retention, resume_from=self.lineage.version or None)
            self._publisher.open()
        if not self.lineage.version:
            self._publish(self.states["train_state"].step)
        return loaded

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        if last_step or curr_step % self._config.publish_every == 0:
            self._publish(curr_step)
        self.draining = not last_step and curr_step % self._config.drain_every == 0 and self._agreed()
        saved: bool = super()._save(curr_step, last_step)
        if self.draining:
            self.maybe_wait_for_saving()
            holdfast.ready_to_drain()
        return saved

    def _should_save(self, curr_step: int, last_step: bool = False) -> bool:
        return super()._should_save(curr_step, last_step) or (self.draining and not self.load_only)

    def _close(self) -> None:
        super()._close()
        if self._publisher is not None:
            self._publisher.close()

    def _agreed(self) -> bool:
        if holdfast.job() is None:
            return False
        answers: list[bool] = [False] * distributed.get_world_size()
        distributed.all_gather_object(answers, holdfast.drain_requested())
        return any(answers)

    def _publish(self, step: int) -> None:
        """All ranks write their part; rank 0 publishes the whole. Raises FencedError if this trainer was replaced."""
        made = self._outbox / f"step-{step}"
        weights = self.states[MODEL].state_dict()
        cast = {name: w.to(self.export_dtype) if w.is_floating_point() else w for name, w in weights.items()}
        self.dcp_save(cast, checkpoint_id=str(made), async_mode=AsyncMode.DISABLED, to_hf=True)
        distributed.barrier()
        name = [""]
        if self._publisher is not None:
            shutil.rmtree(made / "sharded", ignore_errors=True)
            assets = pathlib.Path(self.sd_adapter.hf_assets_path)
            for path in (path for pattern in BESIDE for path in assets.glob(pattern)):
                shutil.copyfile(path, made / path.name)
            name = [str(self._publisher.publish_directory(step, made, kind="full"))]
            shutil.rmtree(made)
        distributed.broadcast_object_list(name, src=0)
        self.lineage.version = name[0]

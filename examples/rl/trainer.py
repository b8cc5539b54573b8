"""The trainer: GRPO on rollouts that servers made, a version published after each step, checkpoints to go on from.

holdfast run --nnodes 2 --spares 1 -m examples.rl.trainer RUN [--channel PATH]        on each node

Whatever dies, the next round starts here again, on all nodes: the newest checkpoint is loaded, and the channel is
claimed from the version that the checkpoint names, which servers see as a rewind. A trainer that was replaced
gets FencedError from its publisher, and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForCausalLM
from transformers.utils import logging

import holdfast
from examples.rl.config import Config, Run
from examples.rl.rollouts import Batch, Batches, Group

START: dict[str, Any] = {"step": 0, "batch": 0, "version": None, "adapter": None, "optimizer": None}


class Trainer:
    """The policy in training: on every rank the same, the gradients are averaged."""

    def __init__(self, run: Run, checkpoint: dict[str, Any]) -> None:
        self.config: Config = run.config
        torch.manual_seed(1)
        base = LlamaForCausalLM.from_pretrained(run.base)
        lora = LoraConfig(r=self.config.rank, lora_alpha=2 * self.config.rank, target_modules="all-linear")
        self.policy = get_peft_model(base, lora)
        self.trained = {name: one for name, one in self.policy.named_parameters() if one.requires_grad}
        self.model = DistributedDataParallel(self.policy)
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=self.config.learning_rate, weight_decay=0.0)
        self.step: int = checkpoint["step"]
        self.batch: int = checkpoint["batch"]
        if checkpoint["adapter"] is not None:
            self.policy.load_state_dict(checkpoint["adapter"], strict=False)
            self.optimizer.load_state_dict(checkpoint["optimizer"])

    def learn(self, batch: Batch) -> dict[str, float]:
        """One optimizer step on this rank's share of the batch; what is worth a curve."""
        used = [group for group in batch.groups if abs(self.step - group.step) <= self.config.staleness_max]
        mine = used[dist.get_rank() :: dist.get_world_size()]
        loss = self._loss(mine) if mine else sum(one.sum() for one in self.trained.values()) * 0.0
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.batch = batch.number + 1
        staleness = [self.step - 1 - group.step for group in used]
        dropped = float(len(batch.groups) - len(used))
        return {"staleness": sum(staleness) / max(1, len(staleness)), "dropped": dropped, "loss": float(loss.detach())}

    def _loss(self, groups: list[Group]) -> torch.Tensor:
        """Policy gradient with each group's own baseline. The versions that sampled are older than the policy: so the
        answers count by importance weights, cut off at `weight_max`."""
        rows = [(group, answer) for group in groups for answer in group.answers]
        num_prompt = len(groups[0].prompt)
        longest = max(len(answer.tokens) for _, answer in rows)
        tokens = torch.zeros(len(rows), num_prompt + longest, dtype=torch.long)
        sampled = torch.zeros(len(rows), longest)
        mask = torch.zeros(len(rows), longest)
        for row, (group, answer) in enumerate(rows):
            end = len(answer.tokens)
            tokens[row, : num_prompt + end] = torch.tensor(group.prompt + answer.tokens)
            sampled[row, :end] = torch.tensor(answer.logprobs)
            mask[row, :end] = 1.0
        logits = self.model(tokens).logits[:, num_prompt - 1 : -1]
        logprobs = torch.log_softmax(logits, -1).gather(2, tokens[:, num_prompt:, None])[..., 0]
        weights = (logprobs.detach() - sampled).exp().clamp(max=self.config.weight_max)
        rewards = torch.tensor([[answer.reward for answer in group.answers] for group in groups])
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-3)
        return -(weights * advantages.reshape(-1, 1) * logprobs * mask).sum() / mask.sum()

    def checkpoint(self, version: str) -> dict[str, Any]:
        """All that a later round needs; `version` is this step's name in the channel."""
        adapter = {name: one.detach() for name, one in self.trained.items()}
        optimizer = self.optimizer.state_dict()
        return {
            "step": self.step,
            "batch": self.batch,
            "version": version,
            "adapter": adapter,
            "optimizer": optimizer,
        }


def save(directory: pathlib.Path, checkpoint: dict[str, Any]) -> None:
    """Durability: it survives a power cut once this returned; before, the one before it stands."""
    directory.mkdir(exist_ok=True)
    making = directory / f"{checkpoint['step']:06d}.making"
    with making.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    making.rename(making.with_suffix(".pt"))
    for old in sorted(directory.glob("*.pt"))[:-2]:
        old.unlink()


def newest(directory: pathlib.Path) -> dict[str, Any]:
    """Rank 0 reads it and tells the others: each for itself might see another one."""
    found = sorted(directory.glob("*.pt")) if dist.get_rank() == 0 else []
    told = [torch.load(found[-1], weights_only=True) if found else START]
    dist.broadcast_object_list(told)
    return told[0]


def agreed(wish: bool) -> bool:
    """Whether any rank wishes it; ranks learn of a drain at slightly different times."""
    flag = torch.tensor(int(wish))
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def train(run: Run, channel: holdfast.Channel) -> None:
    config, batches = run.config, Batches(run.batches)
    checkpoint = newest(run.checkpoints)
    trainer = Trainer(run, checkpoint)
    leads = dist.get_rank() == 0
    events = channel.event_log("trainer") if leads else None
    claim = channel.publisher(config.retention, resume_from=checkpoint["version"]) if leads else None
    with claim or contextlib.nullcontext() as publisher:  # claimed before the first step
        if publisher and publisher.starts_from is None:
            publisher.publish_adapter(trainer.step, trainer.policy, metadata={"batch": trainer.batch})
        while trainer.step < config.steps:
            told = [batches.take(trainer.batch) if leads else None]
            dist.broadcast_object_list(told)
            measured = trainer.learn(told[0])
            if publisher:
                metadata = {"batch": trainer.batch, "final": trainer.step == config.steps}
                version = publisher.publish_adapter(trainer.step, trainer.policy, metadata=metadata)
                events.emit("measured", version=version, step=trainer.step, **measured)
            drain = agreed(holdfast.drain_requested())
            if publisher and (drain or trainer.step % config.checkpoint_every == 0):
                save(run.checkpoints, trainer.checkpoint(str(version)))
            if drain:
                holdfast.ready_to_drain()
    if events:
        events.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="trainer", description=__doc__)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument(
        "--channel", type=pathlib.Path, help="where this machine sees the channel; default: RUN/channel"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    run = Run(arguments.run)
    dist.init_process_group("gloo")
    train(run, holdfast.Channel(arguments.channel or run.channel))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Keeps what a run makes and sweeps again, so that each answer can be held against the version of its label."""

from __future__ import annotations

import os
import pathlib
import shutil
from contextlib import suppress

import msgspec
import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import LlamaForCausalLM

from examples.rl.config import Run
from examples.rl.rollouts import Batch, Group
from holdfast.core.names import parse_version

SAME = 2e-4  # of two computations in float32; versions that follow one another differ by a hundred times that


class Archive:
    """`look` often enough that no version and no batch goes unseen."""

    def __init__(self, run: Run, root: pathlib.Path) -> None:
        self._run = run
        self._versions = root / "versions"
        self._batches = root / "batches"
        for place in (self._versions, self._batches):
            place.mkdir(parents=True)

    def look(self) -> None:
        for version in os.listdir(self._run.channel / "versions"):
            self._keep(self._run.channel / "versions" / version, self._versions / version)
        for batch in self._run.batches.glob("*.json"):
            with suppress(FileNotFoundError):
                if not (self._batches / batch.name).exists():
                    os.link(batch, self._batches / batch.name)

    def _keep(self, source: pathlib.Path, target: pathlib.Path) -> None:
        if target.exists() or parse_version(source.name) is None:
            return
        making = target.with_name(f".{target.name}")
        making.mkdir(exist_ok=True)
        try:
            for name in os.listdir(source):
                with suppress(FileExistsError):
                    os.link(source / name, making / name)
        except FileNotFoundError:  # swept just now: then a part of it is no use
            shutil.rmtree(making)
            return
        making.rename(target)

    def groups(self) -> list[Group]:
        """All that was answered."""
        files = sorted(self._batches.glob("*.json"))
        batches = [msgspec.json.decode(file.read_bytes(), type=Batch) for file in files]
        return [group for batch in batches for group in batch.groups]

    def versions(self) -> list[str]:
        return sorted(path.name for path in self._versions.iterdir())

    def differences(self, groups: list[Group], versions: list[str]) -> list[float]:
        """For each group: by how much its log-probabilities differ, at most, from those of the version beside it."""
        order = sorted(range(len(groups)), key=lambda place: versions[place])
        found = dict.fromkeys(range(len(groups)), 0.0)
        model: PeftModel | None = None
        loaded = ""
        for place in order:
            if model is None:
                base = LlamaForCausalLM.from_pretrained(self._run.base)
                model = PeftModel.from_pretrained(base, self._versions / versions[place]).eval()
            elif versions[place] != loaded:
                set_peft_model_state_dict(model, load_peft_weights(str(self._versions / versions[place])))
            loaded = versions[place]
            found[place] = _difference(model, groups[place])
        return [found[place] for place in range(len(groups))]


@torch.no_grad()
def _difference(model: PeftModel, group: Group) -> float:
    worst = 0.0
    for answer in group.answers:
        tokens = torch.tensor([group.prompt + answer.tokens])
        logprobs = torch.log_softmax(model(tokens).logits[0, len(group.prompt) - 1 : -1], -1)
        made = logprobs.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        worst = max(worst, float((made - torch.tensor(answer.logprobs)).abs().max()))
    return worst

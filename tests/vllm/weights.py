"""Random weights that are published without training, and what a model with exactly these weights answers.

An answer is checked by one pass over prompt and answer: it is the greedy output of a version if and only if each of its
tokens is what the version finds most likely after all that is before it. In float32 vLLM and transformers agree but for
rounding, so that two tokens within `TIE` of each other count as equally likely.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, Qwen3ForCausalLM

from holdfast.core.names import Version
from tests.support.tiny import TARGETS, make_base

TIE = 1e-3
Tensors = Mapping[str, torch.Tensor]


class Adapters:
    """LoRA adapters over one base: made from a seed, and remembered under the version that they became."""

    def __init__(self, base: pathlib.Path) -> None:
        self.base = base
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self._config = LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=list(TARGETS)
        )
        model = Qwen3ForCausalLM.from_pretrained(base, dtype=torch.float32)
        self._model = get_peft_model(model, self._config).eval()
        self._shapes = {
            name.replace(".default.", "."): weight.shape
            for name, weight in self._model.named_parameters()
            if "lora_" in name
        }
        self._seeds: dict[str, int] = {}
        self._there: int | None = None
        self._said: dict[tuple[str, str, tuple[int, ...]], bool] = {}

    def tensors(self, seed: int, rank: int = 8) -> dict[str, torch.Tensor]:
        """An adapter that changes the answers a lot. Equal seeds, equal tensors."""
        dice = torch.Generator().manual_seed(seed)
        shapes = {
            name: (rank, shape[1]) if "lora_A" in name else (shape[0], rank) for name, shape in self._shapes.items()
        }
        return {name: torch.empty(shape).normal_(0, 0.3, generator=dice) for name, shape in shapes.items()}

    def config(self, rank: int = 8) -> dict[str, Any]:
        return {**self._config.to_dict(), "r": rank, "base_model_name_or_path": str(self.base)}

    def remember(self, version: Version, seed: int) -> Version:
        self._seeds[str(version)] = seed
        return version

    def greedy(self, seed: int, prompt: str, count: int) -> list[int]:
        """What the adapter of this seed answers."""
        self._load(seed)
        ids = list(self.tokenizer(prompt).input_ids)
        for _ in range(count):
            with torch.inference_mode():
                ids.append(int(self._model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[-count:]

    def _load(self, seed: int) -> None:
        if seed == self._there:
            return
        self._there = seed
        own = {name.replace(".weight", ".default.weight"): tensor for name, tensor in self.tensors(seed).items()}
        assert not self._model.load_state_dict(own, strict=False).unexpected_keys

    def is_pure(self, version: str, prompt: str, tokens: tuple[int, ...]) -> bool:
        """Whether `tokens` is what exactly this version answers."""
        key = version, prompt, tokens
        if key not in self._said:
            self._load(self._seeds[version])
            self._said[key] = _is_greedy(self._model, self.tokenizer(prompt).input_ids, tokens)
        return self._said[key]


class Checkpoints:
    """Whole models of one shape: made from a seed, and remembered under the version that they became."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._seeds: dict[str, int] = {}
        self._models: dict[int, Qwen3ForCausalLM] = {}
        self._said: dict[tuple[str, str, tuple[int, ...]], bool] = {}

    def place(self, seed: int) -> pathlib.Path:
        path = self._folder / f"checkpoint-{seed}"
        return path if path.exists() else make_base(path, seed)

    def remember(self, version: Version, seed: int) -> Version:
        self._seeds[str(version)] = seed
        return version

    def is_pure(self, version: str, prompt: str, tokens: tuple[int, ...]) -> bool:
        """Whether `tokens` is what exactly this version answers."""
        key = version, prompt, tokens
        if key not in self._said:
            seed = self._seeds[version]
            if seed not in self._models:
                self._models[seed] = Qwen3ForCausalLM.from_pretrained(self.place(seed), dtype=torch.float32).eval()
                self._tokenizer = AutoTokenizer.from_pretrained(self.place(seed))
            self._said[key] = _is_greedy(self._models[seed], self._tokenizer(prompt).input_ids, tokens)
        return self._said[key]


def _is_greedy(model: torch.nn.Module, prompt: list[int], answer: tuple[int, ...]) -> bool:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    best = logits.max(dim=1).values
    chosen = logits[torch.arange(len(answer)), torch.tensor(answer)]
    return bool(torch.all(best - chosen <= TIE))

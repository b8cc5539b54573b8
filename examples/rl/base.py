"""The base model: a small Llama, warmed up on demonstrations. Made once, before trainers and servers start.

python -m examples.rl.base RUN
"""

from __future__ import annotations

import pathlib
import random
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from examples.rl import task
from examples.rl.config import Config, Run

LEARNING_RATE = 2e-3
IGNORED = -100  # positions without a label


def make_base(directory: pathlib.Path, config: Config) -> None:
    """Model and tokenizer in `directory`, which appears once all is in it."""
    making = directory.with_name("base.making")
    making.mkdir(parents=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(task.VOCABULARY),
            hidden_size=config.width,
            intermediate_size=2 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.width // 32,
            num_key_value_heads=config.width // 32,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=task.VOCABULARY[task.END],
        )
    )
    warm_up(model, config)
    model.save_pretrained(making)
    task.save_tokenizer(making)
    making.rename(directory)


def warm_up(model: LlamaForCausalLM, config: Config) -> None:
    """Supervised: next-token loss on the answers."""
    teacher = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for step in range(config.warm_up_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 20)
        tokens = torch.tensor([task.demonstration(teacher) for _ in range(config.warm_up_batch)])
        labels = tokens.clone()
        labels[:, : task.DIGITS + 1] = IGNORED
        model(tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    run = Run(pathlib.Path(sys.argv[1]))
    if not run.base.exists():
        make_base(run.base, run.config)

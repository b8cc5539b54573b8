"""A tiny Llama with one token a character, made on the spot, and what a trainer learns from: sums of two digits."""

from __future__ import annotations

import pathlib
import string
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from holdfast import Channel, HeldVersion, Retention
from holdfast.core.lineage import candidates

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
CHARACTERS = string.digits + "+= "
ALL = Retention(keep_recent=100)
LORA = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *CHARACTERS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def base(path: pathlib.Path) -> pathlib.Path:
    """The model's directory, as `from_pretrained` opens it. Equal bytes every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(CHARACTERS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def llama(path: pathlib.Path, *, lora: bool = True) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(path)
    return get_peft_model(model, LORA) if lora else model


def sums() -> list[dict[str, Any]]:
    """Examples as a Trainer takes them, all of one length."""
    tokens = tokenizer()
    texts = [f"{a}+{b}={a + b:02d}" for a in range(10) for b in range(10)]
    return [{"input_ids": ids, "labels": ids} for ids in (tokens(text).input_ids for text in texts)]


def settings(path: pathlib.Path, **more: Any) -> TrainingArguments:
    """Where `path` is the directory of its checkpoints."""
    given: dict[str, Any] = {
        "output_dir": str(path),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **more,
    }
    return TrainingArguments(**given)


def trainer(model: Any, arguments: TrainingArguments, *callbacks: TrainerCallback) -> Trainer:
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=sums(),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    )


def lineage(channel: Channel) -> list[tuple[int, int]]:
    """(cycle, step) of all that a consumer may be given, older first."""
    observer = channel.observer()
    return sorted((version.cycle, version.step) for version in candidates(observer.lineage(), observer.versions()))


def take(channel: Channel, name: str = "server") -> HeldVersion:
    """What a fresh consumer is given; its files stay for as long as nothing sweeps."""
    with channel.consumer(name) as consumer:
        held = consumer.take(20.0)
        assert held is not None
        return held


class Halt(TrainerCallback):  # type: ignore[misc]
    """Stops the training after `step`, as a crash would: by an error."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == self._step:
            raise Halted


class Halted(Exception):
    pass

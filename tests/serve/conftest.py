"""Models that are made once, a server for each test, and what transformers and PEFT answer by themselves."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator

import pytest
import torch
from peft import PeftModel
from transformers import Qwen3ForCausalLM

from holdfast.serve.server import Server
from tests.support.serving import Client, serving
from tests.support.tiny import make_adapter, make_base

Reference = Callable[..., list[int]]


class Tiny:
    """Paths: two checkpoints of one architecture, the second one in shards, and three adapters."""

    def __init__(self, root: pathlib.Path) -> None:
        self.base = make_base(root / "base", 0)
        self.base2 = make_base(root / "base2", 99, shard_size="100KB")
        self.adapters = [make_adapter(self.base, root / f"adapter{number}", 100 + number) for number in (1, 2)]
        self.large = make_adapter(self.base, root / "large", 7, rank=16)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The greedy answer by transformers and PEFT: `reference(base, adapter | None, prompt_ids, max_tokens)`."""

    @functools.cache
    def model(base: pathlib.Path, adapter: pathlib.Path | None) -> torch.nn.Module:
        plain = Qwen3ForCausalLM.from_pretrained(base, dtype=torch.float32)
        return (plain if adapter is None else PeftModel.from_pretrained(plain, adapter)).eval()

    def answer(base: pathlib.Path, adapter: pathlib.Path | None, prompt: list[int], max_tokens: int = 12) -> list[int]:
        with torch.inference_mode():
            made = model(base, adapter).generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=max_tokens,
                eos_token_id=[],
            )
        ids: list[int] = made[0, len(prompt) :].tolist()
        return ids

    return answer


@pytest.fixture
def running(tiny: Tiny) -> Iterator[tuple[Client, Server]]:
    with serving(tiny.base, served_model_name="tiny", max_lora_rank=8) as pair:
        yield pair


@pytest.fixture
def client(running: tuple[Client, Server]) -> Client:
    return running[0]

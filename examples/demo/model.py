"""The language model: a small Llama that is warmed up a little, its adapter, and its loss on held-out text.

As a process of its own it makes the base model, which the trainer and both model servers load.
"""

from __future__ import annotations

import json
import pathlib
import warnings
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.demo.plan import HELD_OUT, Places, Plan
from examples.demo.text import END, documents, encode, train_tokenizer

TRAIN = "train.pt"  # token ids
NUM_HELD_OUT = 60  # documents that are never trained on
HELD_ROWS = 8
HELD_CONTEXT = 128
LEARNING_RATE = 5e-3
WARM_UP_RATE = 3e-3
# The embeddings too: this base has seen so little that the adapter has to teach it words.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"]

# PEFT says at every save that it saves the embeddings along with the adapter. That is meant.
warnings.filterwarnings("ignore", message=".*save_embedding_layers.*")


class Texts:
    """The token ids: `train` [N], `held_out` [HELD_ROWS, HELD_CONTEXT]."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.train: torch.Tensor = torch.load(directory / TRAIN, weights_only=True)
        self.held_out = torch.tensor(json.loads((directory / HELD_OUT).read_text()))

    def batch(self, plan: Plan, step: int) -> torch.Tensor:
        """[batch, context] token ids; the same for the same step, whichever trainer asks."""
        generator = torch.Generator().manual_seed(step)
        starts = torch.randint(len(self.train) - plan.context, (plan.batch,), generator=generator)
        return torch.stack([self.train[start : start + plan.context] for start in starts])


def make_base(directory: pathlib.Path, plan: Plan) -> None:
    """Tokenizer, token ids and the warmed-up base model in `directory`, which appears once all is in it."""
    making = directory.with_name("base.making")
    making.mkdir()
    texts = documents(plan.characters)
    tokenizer = train_tokenizer(texts, plan.vocabulary)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(making)
    held_out = encode(tokenizer, texts[:NUM_HELD_OUT])
    rows = [held_out[row * HELD_CONTEXT : (row + 1) * HELD_CONTEXT] for row in range(HELD_ROWS)]
    (making / HELD_OUT).write_text(json.dumps(rows))
    torch.save(torch.tensor(encode(tokenizer, texts[NUM_HELD_OUT:])), making / TRAIN)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=plan.width,
            intermediate_size=3 * plan.width,
            num_hidden_layers=plan.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
        )
    )
    data = Texts(making)
    optimizer = new_optimizer(model, WARM_UP_RATE)
    for step in range(plan.warm_up_steps):
        train_step(model, optimizer, data.batch(plan, -1 - step), WARM_UP_RATE * min(1.0, (step + 1) / 10))
    model.save_pretrained(making)
    making.rename(directory)


def load_base(directory: pathlib.Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(directory)


def with_new_adapter(base: LlamaForCausalLM, plan: Plan) -> PeftModel:
    """`base` with a fresh LoRA adapter, which changes nothing until it is trained."""
    torch.manual_seed(1)
    return get_peft_model(base, LoraConfig(r=plan.rank, lora_alpha=2 * plan.rank, target_modules=TARGETS))


def new_optimizer(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)


def rate_at(step: int, steps: int) -> float:
    """The learning rate: up over ten steps, even, then down over the last two fifths."""
    return LEARNING_RATE * min(1.0, (step + 1) / 10, max(0.1, (steps - step) / (0.4 * steps)))


def train_step(model: Any, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, rate: float) -> float:
    """One optimizer step on `tokens` [batch, context]; the loss before it, nats per token."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    model.train()
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


@torch.no_grad()
def held_out_loss(model: Any, texts: Texts) -> float:
    """Nats per token on text that nothing was trained on."""
    model.eval()
    return float(model(texts.held_out, labels=texts.held_out).loss)


def quietly() -> None:
    """One thread, and no progress bars: several of these processes share the machine."""
    torch.set_num_threads(1)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def main(root: str) -> None:
    quietly()
    places = Places(pathlib.Path(root))
    make_base(places.base, places.read_plan())

"""The task: five digits in, the same in ascending order out. Whoever knows the prompt can check the answer."""

from __future__ import annotations

import pathlib
import random

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

DIGITS = 5
THEN, END = ">", "."
VOCABULARY = {character: token for token, character in enumerate("0123456789" + THEN + END)}
ANSWER_TOKENS = DIGITS + 1


def prompt(random_: random.Random) -> list[int]:
    """Token ids, `58213>`."""
    return encode("".join(random_.choices("0123456789", k=DIGITS)) + THEN)


def answer(asked: list[int]) -> list[int]:
    """The right one, `12358.`."""
    return [*sorted(asked[:DIGITS]), VOCABULARY[END]]


def reward(asked: list[int], answered: list[int]) -> float:
    """Between 0 and 1: how much of the right answer is there, at its place."""
    right = answer(asked)
    return sum(one == other for one, other in zip(answered, right, strict=False)) / len(right)


def demonstration(random_: random.Random) -> list[int]:
    """Prompt and answer by a careless teacher, who sorts the wrong way round half of the time: room for reward."""
    asked = prompt(random_)
    *digits, end = answer(asked)
    return [*asked, *(digits if random_.random() < 0.5 else reversed(digits)), end]


def encode(text: str) -> list[int]:
    return [VOCABULARY[character] for character in text]


def save_tokenizer(directory: pathlib.Path) -> None:
    """Character by character, as an ordinary tokenizer that inference servers load."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(directory)

"""From logits to the next token."""

from __future__ import annotations

import dataclasses

import torch

GREEDY_BELOW = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one sequence is made.

    Attributes:
        logprobs: how many alternatives are told beside the chosen token; None: no log-probabilities at all.
        prompt_logprobs: the same for the tokens of the prompt.
        stop_ids: tokens that end the sequence; the end-of-sequence tokens are among `eos_ids` instead.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    eos_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    skip_special: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A token with its log-probability: natural logarithm, before temperature and cut-offs.

    Attributes:
        place: among all tokens; 1 is the likeliest.
    """

    token_id: int
    logprob: float
    place: int


def generator_for(sampling: Sampling) -> torch.Generator | None:
    """A source of randomness of the sequence's own; None where none is needed."""
    if sampling.temperature < GREEDY_BELOW:
        return None
    generator = torch.Generator(device="cpu")
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def pick(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """The next token from `logits`, [V] float32."""
    if generator is None:
        return int(logits.argmax())
    scaled = logits / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k).values[-1], -torch.inf)
    chances = scaled.softmax(dim=-1)
    if sampling.min_p > 0.0:
        chances = chances.masked_fill(chances < sampling.min_p * chances.max(), 0.0)
    if sampling.top_p < 1.0:
        chances = _nucleus(chances, sampling.top_p)
    return int(torch.multinomial(chances, 1, generator=generator))


def _nucleus(chances: torch.Tensor, top_p: float) -> torch.Tensor:
    """Only the likeliest tokens that together reach `top_p`; the likeliest one always."""
    chances = chances / chances.sum()
    ordered, places = chances.sort(descending=True)
    beyond = ordered.cumsum(dim=-1) - ordered >= top_p
    beyond[0] = False
    return chances.scatter(0, places, ordered.masked_fill(beyond, 0.0))


def rank(logits: torch.Tensor, chosen: int, num_top: int) -> tuple[Ranked, ...]:
    """The chosen token first, then the `num_top` likeliest, each once."""
    logprobs = logits.log_softmax(dim=-1)
    top = logprobs.topk(min(num_top, len(logprobs))).indices.tolist() if num_top else []
    place = int((logprobs > logprobs[chosen]).sum()) + 1
    ranked = [Ranked(chosen, float(logprobs[chosen]), place)]
    ranked += [Ranked(token, float(logprobs[token]), at) for at, token in enumerate(top, 1) if token != chosen]
    return tuple(ranked)

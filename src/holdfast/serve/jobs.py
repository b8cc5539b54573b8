"""Requests as the engine sees them: a job is one request with one or more sequences, all made by the same weights."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Literal

import torch
from transformers import DynamicCache

from holdfast.serve.errors import ApiError
from holdfast.serve.reading import Adapter
from holdfast.serve.sampling import Ranked, Sampling, generator_for, pick, rank
from holdfast.serve.text import Detokenizer, Texts
from holdfast.serve.weights import Weights

FinishReason = Literal["stop", "length", "abort"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """What one step added to a sequence. With a `finish_reason` it is the sequence's last one.

    Attributes:
        prompt_logprobs: with the first piece, if they are wanted: for each token of the prompt but the first.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[tuple[Ranked, ...], ...]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[tuple[Ranked, ...], ...] | None = None


class Sequence:
    """One answer in the making."""

    def __init__(self, index: int, prompt: list[int], sampling: Sampling, texts: Texts) -> None:
        self.index = index
        self.prompt = prompt
        self.finished = False
        self.num_tokens = 0
        self._sampling = sampling
        self._text = Detokenizer(
            texts, prompt, sampling.stop, include=sampling.include_stop, skip=sampling.skip_special
        )
        self._generator = generator_for(sampling)
        self._cache: DynamicCache | None = None
        self._next = prompt

    def step(self, weights: Weights, adapter: Adapter | None) -> Piece:
        """One more token. The first step reads the whole prompt."""
        logits, read = self._read(weights, adapter)
        token = pick(logits, self._sampling, self._generator)
        self._next = [token]
        self.num_tokens += 1
        ranked = self._ranked(logits, token)
        reason, cause = self._end(token)
        if reason is not None:
            self.finished = True
            self._cache = None
        return Piece(
            index=self.index,
            text=self._text.take(finished=self.finished),
            token_ids=(token,),
            logprobs=ranked,
            finish_reason=reason,
            stop_reason=cause,
            prompt_logprobs=read,
        )

    def _read(
        self, weights: Weights, adapter: Adapter | None
    ) -> tuple[torch.Tensor, tuple[tuple[Ranked, ...], ...] | None]:
        """Next-token logits, and what the prompt's own tokens were worth, if this step reads the prompt."""
        num_top = self._sampling.prompt_logprobs
        if self._cache is not None:
            return weights.logits(self._next, self._cache, adapter), None
        self._cache = weights.new_cache()
        if num_top is None:
            return weights.logits(self._next, self._cache, adapter), None
        logits = weights.all_logits(self.prompt, self._cache, adapter)
        ranked = [rank(before, token, num_top) for before, token in zip(logits, self.prompt[1:], strict=False)]
        return logits[-1], tuple(ranked)

    def _ranked(self, logits: torch.Tensor, token: int) -> tuple[tuple[Ranked, ...], ...]:
        num_top = self._sampling.logprobs
        return () if num_top is None else (rank(logits, token, num_top),)

    def _end(self, token: int) -> tuple[FinishReason | None, str | int | None]:
        sampling = self._sampling
        if token in sampling.eos_ids or token in sampling.stop_ids:
            if sampling.include_stop:
                self._text.add(token)
            return "stop", None if token in sampling.eos_ids else token
        stop = self._text.add(token)
        if stop is not None:
            return "stop", stop
        return ("length", None) if self.num_tokens >= sampling.max_tokens else (None, None)

    def abort(self) -> Piece:
        self.finished = True
        self._cache = None
        text = self._text.take(finished=True)
        return Piece(index=self.index, text=text, token_ids=(), logprobs=(), finish_reason="abort")


class Job:
    """One request. Its sequences begin together, with one version of the weights, and stay with it to the end.

    Attributes:
        model: the name that the client asked for.
        adapter: what makes the answer; None the model itself. Final once `started`.
        weights: the full weights under it; None until it started.
        sink: is given, in the engine's thread, each piece, or the error that ended the job.
    """

    def __init__(
        self, model: str, adapter: Adapter | None, sequences: list[Sequence], sink: Callable[[Piece | ApiError], None]
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.weights: Weights | None = None
        self.sequences = sequences
        self.sink = sink
        self.started = False
        self.cancelled = threading.Event()

    @property
    def finished(self) -> bool:
        return all(sequence.finished for sequence in self.sequences)

    @property
    def num_open(self) -> int:
        return sum(not sequence.finished for sequence in self.sequences)

    def fingerprint(self) -> str | None:
        """Which bytes make this answer; None before it started."""
        if self.weights is None:
            return None
        adapter = "" if self.adapter is None else f"-{self.adapter.fingerprint}"
        return f"{self.weights.fingerprint}{adapter}"

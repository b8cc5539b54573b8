"""What clients get: the bodies of answers, whole or as server-sent events.

Source: the bodies of vLLM 0.32, field by field; what this server never fills is null there, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import msgspec

from holdfast.serve.jobs import FinishReason, Piece
from holdfast.serve.sampling import Ranked
from holdfast.serve.text import Texts

LOGPROB_MIN = -9999.0  # what -inf is told as: JSON has no infinities


@dataclasses.dataclass
class Gathered:
    """All pieces of one sequence, put together."""

    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[tuple[Ranked, ...]] = dataclasses.field(default_factory=list)
    prompt_logprobs: tuple[tuple[Ranked, ...], ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs
        if piece.prompt_logprobs is not None:
            self.prompt_logprobs = piece.prompt_logprobs
        self.finish_reason = piece.finish_reason
        self.stop_reason = piece.stop_reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What the client wants to see of each answer."""

    id: str
    created: int
    model: str
    prompts: tuple[list[int], ...]
    n: int
    token_ids: bool
    logprobs: bool
    num_top: int
    ids_for_tokens: bool
    include_usage: bool

    def prompt_of(self, index: int) -> list[int]:
        return self.prompts[index // self.n]


class Answers:
    """The bodies of one request's answer; `Completions` and `Chats` differ in their shape."""

    def __init__(self, texts: Texts, wish: Wish) -> None:
        self._texts = texts
        self.wish = wish
        self._num_told = [0] * (len(wish.prompts) * wish.n)
        self._offsets = [0] * len(self._num_told)

    def whole(self, gathered: list[Gathered], fingerprint: str | None) -> bytes:
        raise AssertionError("made by the subclass")

    def opening(self) -> Iterable[bytes]:
        """Events before the first piece."""
        return ()

    def events(self, piece: Piece, fingerprint: str | None, *, last: bool) -> Iterable[bytes]:
        """Events for a piece; `last` with the last one of the whole answer."""
        index = piece.index
        first = self._num_told[index] == 0
        self._num_told[index] += len(piece.token_ids)
        chunk = self._head() | {"choices": [self._delta(piece, first=first)]}
        if last and not self.wish.include_usage:
            chunk["system_fingerprint"] = fingerprint
        yield event(chunk)
        if last and self.wish.include_usage:
            usage = self._usage(sum(self._num_told))
            yield event(self._head() | {"choices": [], "usage": usage, "system_fingerprint": fingerprint})

    def _head(self) -> dict[str, Any]:
        raise AssertionError("made by the subclass")

    def _delta(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        raise AssertionError("made by the subclass")

    def _usage(self, num_made: int) -> dict[str, Any]:
        num_read = sum(len(prompt) for prompt in self.wish.prompts)
        return {"prompt_tokens": num_read, "total_tokens": num_read + num_made, "completion_tokens": num_made}

    def _full_usage(self, gathered: list[Gathered]) -> dict[str, Any]:
        usage = self._usage(sum(len(each.token_ids) for each in gathered))
        return usage | {"prompt_tokens_details": None, "completion_tokens_details": None}

    def _of_prompt(self, each: Gathered) -> list[dict[str, Any] | None] | None:
        """By token id, for each token of the prompt; nothing stands before the first."""
        if each.prompt_logprobs is None:
            return None
        return [None, *({str(one.token_id): self._scored(one) for one in ranked} for ranked in each.prompt_logprobs)]

    def _scored(self, one: Ranked) -> dict[str, Any]:
        return {"logprob": _finite(one.logprob), "rank": one.place, "decoded_token": self._texts.token(one.token_id)}

    def _token(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self.wish.ids_for_tokens else self._texts.token(token_id)


class Completions(Answers):
    def whole(self, gathered: list[Gathered], fingerprint: str | None) -> bytes:
        return encode(
            self._head()
            | {
                "choices": [self._choice(index, each) for index, each in enumerate(gathered)],
                "service_tier": None,
                "system_fingerprint": fingerprint,
                "usage": self._full_usage(gathered),
                "kv_transfer_params": None,
            }
        )

    def _choice(self, index: int, each: Gathered) -> dict[str, Any]:
        return {
            "index": index,
            "text": each.text,
            "logprobs": self._logprobs(index, each.logprobs),
            "finish_reason": each.finish_reason,
            "stop_reason": each.stop_reason,
            "token_ids": each.token_ids if self.wish.token_ids else None,
            "prompt_logprobs": self._of_prompt(each),
            "prompt_token_ids": self.wish.prompt_of(index) if self.wish.token_ids else None,
        }

    def _head(self) -> dict[str, Any]:
        wish = self.wish
        return {"id": wish.id, "object": "text_completion", "created": wish.created, "model": wish.model}

    def _delta(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        return {
            "index": piece.index,
            "text": piece.text,
            "logprobs": self._logprobs(piece.index, piece.logprobs),
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
            "prompt_token_ids": self.wish.prompt_of(piece.index) if self.wish.token_ids and first else None,
            "token_ids": piece.token_ids if self.wish.token_ids else None,
        }

    def _logprobs(self, index: int, steps: Iterable[tuple[Ranked, ...]]) -> dict[str, Any] | None:
        if not self.wish.logprobs:
            return None
        offsets, logprobs, tokens, tops = [], [], [], []
        for ranked in steps:
            token = self._token(ranked[0].token_id)
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token)
            tokens.append(token)
            logprobs.append(_finite(ranked[0].logprob))
            shown = ranked[: self.wish.num_top + 1]
            tops.append({self._token(each.token_id): _finite(each.logprob) for each in shown})
        return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": tokens, "top_logprobs": tops}


class Chats(Answers):
    def whole(self, gathered: list[Gathered], fingerprint: str | None) -> bytes:
        return encode(
            self._head()
            | {
                "object": "chat.completion",
                "choices": [self._choice(index, each) for index, each in enumerate(gathered)],
                "service_tier": None,
                "system_fingerprint": fingerprint,
                "usage": self._full_usage(gathered),
                "prompt_logprobs": self._of_prompt(gathered[0]),
                "prompt_token_ids": self.wish.prompts[0] if self.wish.token_ids else None,
                "kv_transfer_params": None,
            }
        )

    def _choice(self, index: int, each: Gathered) -> dict[str, Any]:
        message = {"role": "assistant", "content": each.text, "refusal": None, "function_call": None, "reasoning": None}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(each.logprobs),
            "finish_reason": each.finish_reason,
            "stop_reason": each.stop_reason,
            "token_ids": each.token_ids if self.wish.token_ids else None,
        }

    def opening(self) -> Iterable[bytes]:
        for index in range(self.wish.n):
            choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            chunk = self._head() | {"choices": [choice | {"logprobs": None}]}
            if self.wish.token_ids:
                chunk["prompt_token_ids"] = self.wish.prompts[0]
            yield event(chunk)

    def _head(self) -> dict[str, Any]:
        wish = self.wish
        return {"id": wish.id, "object": "chat.completion.chunk", "created": wish.created, "model": wish.model}

    def _delta(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        choice = {
            "index": piece.index,
            "delta": {"content": piece.text},
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": piece.finish_reason,
            "token_ids": piece.token_ids if self.wish.token_ids else None,
        }
        return choice if piece.finish_reason is None else choice | {"stop_reason": piece.stop_reason}

    def _logprobs(self, steps: Iterable[tuple[Ranked, ...]]) -> dict[str, Any] | None:
        if not self.wish.logprobs:
            return None
        return {
            "content": [
                self._entry(ranked[0]) | {"top_logprobs": [self._entry(each) for each in ranked[: self.wish.num_top]]}
                for ranked in steps
            ]
        }

    def _entry(self, ranked: Ranked) -> dict[str, Any]:
        token = self._token(ranked.token_id)
        return {"token": token, "logprob": _finite(ranked.logprob), "bytes": list(token.encode())}


DONE = b"data: [DONE]\n\n"


def encode(body: Any) -> bytes:
    return msgspec.json.encode(body)


def event(body: Any) -> bytes:
    return b"data: " + encode(body) + b"\n\n"


def _finite(logprob: float) -> float:
    return max(logprob, LOGPROB_MIN)

"""The HTTP API of an inference server as its clients use it: `holdfast serve` here; vLLM's is the same."""

from __future__ import annotations

import contextlib
import http.client
import statistics
import urllib.parse
from collections.abc import Sequence
from typing import Any

import msgspec

PROMPTS = ("Return the", "Return True if", "Return a list of")
PATIENCE_S = 120.0  # a host that is frozen answers when it is woken


class Refused(Exception):
    """An answer that is not 200."""


class Server:
    """One server.

    Attributes:
        num_answers: how many answers there were so far.
        made_by: the fingerprints of the weights that made completions since this was last cleared.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.num_answers = 0
        self.made_by: set[str] = set()

    def loss(self, model: str, rows: Sequence[Sequence[int]]) -> float:
        """Nats per token that `model` gives to rows of token ids."""
        answer = self._complete(model, prompt=rows, max_tokens=1, prompt_logprobs=0)
        logprobs = [
            position[str(token)]["logprob"]
            for row, choice in zip(rows, answer["choices"], strict=True)
            for token, position in zip(row[1:], choice["prompt_logprobs"][1:], strict=True)
        ]
        return -statistics.fmean(logprobs)

    def complete(self, model: str, prompt: str) -> str:
        """`prompt` and what the model makes of it, the likeliest token each time."""
        answer = self._complete(model, prompt=prompt, max_tokens=16)
        return prompt + str(answer["choices"][0]["text"])

    def path_of(self, model: str) -> str:
        """Where the server read this adapter."""
        cards = msgspec.json.decode(self._ask("GET", "/v1/models"))["data"]
        return str(next(card["root"] for card in cards if card["id"] == model))

    def load(self, name: str, path: str) -> None:
        self._ask("POST", "/v1/load_lora_adapter", lora_name=name, lora_path=path)

    def unload(self, name: str) -> None:
        self._ask("POST", "/v1/unload_lora_adapter", lora_name=name)

    def _complete(self, model: str, **wish: object) -> Any:
        answer = msgspec.json.decode(self._ask("POST", "/v1/completions", model=model, temperature=0, **wish))
        self.made_by.add(answer["system_fingerprint"])
        return answer

    def _ask(self, method: str, path: str, **body: object) -> bytes:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.url).netloc, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(method, path, msgspec.json.encode(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
        self.num_answers += 1
        if answer.status != http.HTTPStatus.OK:
            raise Refused(f"{method} {path} of {body.get('model', '')}: {answer.status} {said[:300]!r}")
        return said

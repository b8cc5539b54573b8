"""Clients that ask without a pause, and write down every answer with what they believed would make it."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tests.support.serving import Client

# Tokenised: 3 words make a few tokens, and the last one is longer than a block of the prefix cache.
PROMPTS = ("weights are", "the quick brown fox " * 4 + "jumps", "hello world, " + "the lazy dog. " * 45)
TOKENS = 12
STOP_S = 120.0

Serves = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """One request and what came of it.

    Attributes:
        status: 0 where there was no answer at all.
        said: what the server says, where it is no completion.
        before: what was served when it was asked, as `GET /served` tells it; after: when it had answered.
    """

    began_s: float
    ended_s: float
    status: int
    model: str
    prompt: str
    tokens: tuple[int, ...]
    said: str
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def exact(self) -> str | None:
        """The one version that can have made it, if nothing changed between the question and the answer."""
        version = self.before.get("version")
        still = self.after.get("version") == version
        quiet = "updating" not in (self.before.get("state"), self.after.get("state"))
        return version if still and quiet else None


class Crowd:
    """`size` clients. Each asks what is served, then that model, and goes on at once.

    Args:
        client: the inference server's.
        serves: what is served, as `GET /served` tells it of one channel: version, model, state.
        patient: clients that try again where there is no answer, or none of a model; others take that for a failure.
    """

    def __init__(self, client: Client, serves: Serves, *, size: int = 3, patient: bool = False) -> None:
        self.answers: list[Answer] = []
        self.failures: list[Answer] = []
        self._client = client
        self._serves = serves
        self._patient = patient
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._broken: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(size)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(STOP_S)
        if kind is None:
            assert not any(thread.is_alive() for thread in self._threads), "a client waits for ever"
            assert self._broken == []

    @property
    def count(self) -> int:
        with self._lock:
            return len(self.answers)

    def versions(self) -> Counter[str]:
        """How many answers each version made, where that is certain."""
        return Counter(answer.exact for answer in self.answers if answer.exact is not None)

    def _run(self, number: int) -> None:
        try:
            before = self._serves()
            while not self._stopping.is_set():
                before = self._ask(PROMPTS[number % len(PROMPTS)], before)
                number += 1
        except BaseException as error:  # noqa: BLE001 - told where the crowd ends
            self._broken.append(error)

    def _ask(self, prompt: str, before: dict[str, Any]) -> dict[str, Any]:
        """Ask once; what is served then."""
        model = before.get("model")
        if model is None:
            self._stopping.wait(0.05)
            return self._serves()
        began_s = time.monotonic()
        status, tokens, said = self._complete(model, prompt)
        ended_s, after = time.monotonic(), self._serves()
        answer = Answer(began_s, ended_s, status, model, prompt, tokens, said, before, after)
        with self._lock:
            (self.answers if status == 200 else self.failures).append(answer)
        if status != 200:
            assert self._patient or len(self.failures) < 100, "everything fails"
            self._stopping.wait(0.05)
            return self._serves()
        return after

    def _complete(self, model: str, prompt: str) -> tuple[int, tuple[int, ...], str]:
        try:
            reply = self._client.complete(model, prompt, max_tokens=TOKENS, ignore_eos=True)
        except (OSError, http.client.HTTPException) as error:
            return 0, (), repr(error)
        if reply.status != 200:
            return reply.status, (), reply.raw.decode(errors="replace")
        (choice,) = reply.json["choices"]
        return reply.status, tuple(choice["token_ids"]), str(choice["finish_reason"])

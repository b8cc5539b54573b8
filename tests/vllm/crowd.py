"""Clients that ask without a pause and write down every answer; beside them somebody watches what is served."""

from __future__ import annotations

import bisect
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

# Tokenised: two words make a few tokens, and the last one is longer than a block of the prefix cache.
PROMPTS = ("weights are", "the quick brown fox " * 4 + "jumps", "hello world, " + "the lazy dog. " * 45)
TOKENS = 12
STOP_S = 120.0
ANSWER_S = 120.0
WATCH_S = 0.02
FRESH_S = 0.3  # names go on being served for a second after a newer one was: nobody asks by an older look

Said = dict[str, Any]


@dataclass(frozen=True)
class Heard:
    """One request and what came of it.

    Attributes:
        status: 0 where there was no answer at all.
        said: what the server says, where it is no completion; else why it ended.
    """

    began_s: float
    ended_s: float
    status: int
    model: str
    prompt: str
    tokens: tuple[int, ...]
    said: str


@dataclass(frozen=True)
class Answer(Heard):
    """A completion, and what `GET /served` told of its channel before it was asked for, and after it was there."""

    before: Said
    after: Said

    @property
    def exact(self) -> str | None:
        """The one version that can have made it, if nothing changed between the question and the answer."""
        named = self.model.partition("-")[2]
        if named:
            return named
        version = self.before.get("version")
        still = self.after.get("version") == version
        quiet = "updating" not in (self.before.get("state"), self.after.get("state"))
        return version if still and quiet else None


class Crowd:
    """`size` clients, each with a connection of its own, which ask for what is served as of the last look.

    Args:
        url: the inference server.
        serves: what is served, as `GET /served` tells it of one channel: version, model, state.
        patient: clients that try again where there is no answer, or none of a model; others take that for a failure.
    """

    def __init__(self, url: str, serves: Callable[[], Said], *, size: int = 3, patient: bool = False) -> None:
        self._address = url.removeprefix("http://")
        self._serves = serves
        self._patient = patient
        self._heard: list[Heard] = []
        self._failures: list[Heard] = []
        self._looks: list[tuple[float, float, Said]] = []  # asked at, told at, what
        self._seen = threading.Event()
        self._stopping = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._broken: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(size)]
        self._watch = threading.Thread(target=self._run_watching, daemon=True)

    def __enter__(self) -> Crowd:
        self._watch.start()
        assert self._seen.wait(STOP_S)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(STOP_S)
        with self._lock:
            looks = len(self._looks)
        while self._watch.is_alive() and len(self._looks) < looks + 2:  # what was served after the last answer
            self._over.wait(WATCH_S)
        self._over.set()
        self._watch.join(STOP_S)
        if kind is None:
            assert not any(thread.is_alive() for thread in self._threads), "a client waits for ever"
            assert self._broken == []

    # What came of it

    @property
    def count(self) -> int:
        with self._lock:
            return len(self._heard)

    @property
    def failed(self) -> list[str]:
        """What went wrong, in short."""
        with self._lock:
            return [f"{one.status} after {one.ended_s - one.began_s:.3f} s: {one.said}" for one in self._failures]

    def failed_but_for(self, allowed: set[str]) -> list[str]:
        """What went wrong, but for names of versions that nobody may have any more."""
        with self._lock:
            gone = {one for one in self._failures if one.status == 404 and one.model.partition("-")[2] in allowed}
            return [f"{one.status}: {one.said}" for one in self._failures if one not in gone]

    @property
    def statuses(self) -> set[int]:
        """Of what went wrong."""
        with self._lock:
            return {one.status for one in self._failures}

    @property
    def answers(self) -> list[Answer]:
        """The completions, each with what was served before and after it; not those of the last moment."""
        with self._lock:
            heard, looks = list(self._heard), list(self._looks)
        asked = [look[0] for look in looks]
        told = [look[1] for look in looks]
        answers = []
        for one in heard:
            before = bisect.bisect_left(told, one.began_s) - 1
            after = bisect.bisect_right(asked, one.ended_s)
            if before >= 0 and after < len(looks):
                answers.append(Answer(**vars(one), before=looks[before][2], after=looks[after][2]))
        return answers

    def versions(self) -> Counter[str]:
        """How many answers each version made, where that is certain."""
        return Counter(answer.exact for answer in self.answers if answer.exact is not None)

    # Threads

    def _run_watching(self) -> None:
        try:
            while not self._over.is_set():
                asked_s = time.monotonic()
                said = self._serves()
                with self._lock:
                    self._looks.append((asked_s, time.monotonic(), said))
                self._seen.set()
                self._over.wait(WATCH_S)
        except BaseException as error:  # noqa: BLE001 - told where the crowd ends
            self._broken.append(error)

    def _run(self, number: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=ANSWER_S)
        try:
            while not self._stopping.is_set():
                self._ask(connection, PROMPTS[number % len(PROMPTS)])
                number += 1
        except BaseException as error:  # noqa: BLE001 - told where the crowd ends
            self._broken.append(error)
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, prompt: str) -> None:
        with self._lock:
            asked_s, _, said = self._looks[-1]
        model = said.get("model")
        if model is None or time.monotonic() - asked_s > FRESH_S:
            self._stopping.wait(WATCH_S)
            return
        began_s = time.monotonic()
        status, tokens, said = _complete(connection, model, prompt)
        heard = Heard(began_s, time.monotonic(), status, model, prompt, tokens, said)
        with self._lock:
            (self._heard if status == 200 else self._failures).append(heard)
            num_failures = len(self._failures)
        if status != 200:
            assert self._patient or num_failures < 100, "everything fails"
            self._stopping.wait(WATCH_S)


def _complete(connection: http.client.HTTPConnection, model: str, prompt: str) -> tuple[int, tuple[int, ...], str]:
    """Status, tokens and what was said."""
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    try:
        connection.request(
            "POST",
            "/v1/completions",
            json.dumps(body | {"return_token_ids": True}),
            {"content-type": "application/json"},
        )
        answer = connection.getresponse()
        raw = answer.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()  # the next request opens it again
        return 0, (), repr(error)
    if answer.status != 200:
        return answer.status, (), raw.decode(errors="replace")
    (choice,) = json.loads(raw)["choices"]
    return answer.status, tuple(choice["token_ids"]), str(choice["finish_reason"])

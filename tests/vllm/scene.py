"""One test's channels, processes and clients around the real server; all but the server end with the test."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import holdfast
from holdfast.channel.publisher import Publisher
from holdfast.core.names import Version
from tests.vllm.crowd import Answer, Crowd
from tests.vllm.process import SyncProcess, Tap, until
from tests.vllm.server import VLLMServer
from tests.vllm.weights import Adapters, Checkpoints

NAMING = ("versioned", "stable")
NAME = "sync"
LEASE_S = 20.0
CANARY = "weights are loaded"


class Scene:
    def __init__(
        self,
        path: pathlib.Path,
        stack: ExitStack,
        server: VLLMServer,
        adapters: Adapters,
        checkpoints: Checkpoints,
    ) -> None:
        self.path = path
        self.server = server
        self.stage = path / "stage"
        self.adapters = adapters
        self.checkpoints = checkpoints
        self._stack = stack
        self._number = 0
        self.published: list[str] = []

    # The channel

    def place(self, channel: str) -> pathlib.Path:
        return self.path / channel

    def publisher(self, channel: str = "channel", *, keep: int = 1, **options: Any) -> Publisher:
        """A publisher that keeps the newest versions only and sweeps all the time; open until the test ends."""
        self._number += 1
        term = holdfast.Term(job=f"job-{self._number}", round=0, nonce="1")
        options = {"retention": holdfast.Retention(keep_recent=keep), "take_over": True, "term": term, **options}
        opened = holdfast.Channel(self.place(channel), lease_s=LEASE_S).publisher(**options)
        return self._stack.enter_context(opened)

    def publish(
        self, publisher: Publisher, step: int, *, rank: int = 8, leave_out: str = "", canary: bool = False
    ) -> Version:
        """A random adapter of its own.

        Args:
            leave_out: without the first tensor that has this in its name.
            canary: with what the adapter answers when nothing is left out.
        """
        self._number += 1
        tensors = self.adapters.tensors(self._number, rank)
        metadata = {}
        if canary:
            expected = self.adapters.greedy(self._number, CANARY, 4)
            metadata["canary"] = {"prompt": CANARY, "token_ids": expected}
        if leave_out:
            del tensors[next(name for name in tensors if leave_out in name)]
        version = publisher.publish_adapter(step, tensors, self.adapters.config(rank), metadata=metadata)
        return self._noted(self.adapters.remember(version, self._number))

    def publish_full(self, publisher: Publisher, step: int, seed: int) -> Version:
        """A whole model; one seed makes the same weights again."""
        version = publisher.publish_directory(step, self.checkpoints.place(seed))
        return self._noted(self.checkpoints.remember(version, seed))

    def _noted(self, version: Version) -> Version:
        self.published.append(str(version))
        return version

    def consumer(self, channel: str = "channel") -> Any:
        """What the sync process's file in the channel says; None if there is none."""
        seen = holdfast.Channel(self.place(channel)).observer().consumers()
        return next((one.record for life, one in sorted(seen.items(), reverse=True) if life.name == NAME), None)

    def acknowledged(self, channel: str = "channel") -> str | None:
        record = self.consumer(channel)
        return record.acknowledged if record is not None else None

    def until_acknowledged(self, version: Version, channel: str = "channel") -> None:
        wanted = str(version)
        until(lambda: self.acknowledged(channel) == wanted, f"{version} was never acknowledged")

    def copies(self, adapter: str = "policy") -> set[str]:
        return {path.name for path in self.stage.glob(f"{adapter}/{NAME}/versions/*")}

    def until_refused(self, version: Version, channel: str = "channel") -> None:
        """Wait until the channel is told that it cannot be used here."""

        def told() -> bool:
            record = self.consumer(channel)
            return record is not None and str(version) in str(record.refused)

        until(told, f"{version} was never refused")

    def until_only(self, version: Version, *, naming: str = "versioned", adapter: str = "policy") -> None:
        """Wait until nothing of the channel but `version` is on the server and on the disk."""
        name = adapter if naming == "stable" else f"{adapter}-{version}"
        path = self.stage / adapter / NAME / "versions" / str(version)

        def alone() -> bool:
            return self.server.adapters() == {name: str(path)} and self.copies(adapter) == {str(version)}

        until(alone, f"{version} is not all there is: {self.copies(adapter)}")
        assert not self.server.is_paused()

    def staged(self) -> set[pathlib.Path]:
        """All that lies in the staging directory, finished or not."""
        return set(self.stage.rglob("*"))

    # Processes

    def sync(self, *words: str, url: str | None = None, channels: Iterable[str] = ("channel",)) -> SyncProcess:
        """A running sync process between the channels and the server."""
        process = SyncProcess(
            self.path,
            *(str(self.place(channel)) for channel in channels),
            *("--url", url or self.server.url, "--name", NAME, "--stage", str(self.stage)),
            *("--lease", str(LEASE_S), *words),
        )
        self._stack.callback(process.end)
        return process.start()

    def configured(self, text: str) -> SyncProcess:
        """A running sync process with a configuration file."""
        path = self.path / "sync.toml"
        path.write_text(f'name = "{NAME}"\nstage = "{self.stage}"\nlease_s = {LEASE_S}\nlisten = "127.0.0.1:0"\n{text}')
        process = SyncProcess(self.path, "--config", str(path))
        self._stack.callback(process.end)
        return process.start()

    def tap(self) -> Tap:
        tap = Tap(self.server.url)
        self._stack.callback(tap.close)
        return tap

    # What has to be true of the answers

    def crowd(self, sync: SyncProcess, *, adapter: str = "policy", patient: bool = False) -> Crowd:
        return Crowd(self.server.url, lambda: sync.serves(adapter), patient=patient)

    def check(self, answers: Iterable[Answer], book: Adapters | Checkpoints | None = None) -> Counter[str]:
        """Every answer is wholly of one version, of the right one; how many each version made."""
        book = book or self.adapters
        makers: Counter[str] = Counter()
        for answer in answers:
            assert answer.said == "length", answer
            possible = self._possible(answer)
            found = [one for one in possible if book.is_pure(one, answer.prompt, answer.tokens)]
            assert found, (answer, possible)
            makers[found[0]] += 1
        return makers

    def _possible(self, answer: Answer) -> list[str]:
        """The versions that may have made it: with a name each, the one that was asked for."""
        if answer.exact is not None:
            return [answer.exact]
        order = self.published
        known = [one.get(which) for one in (answer.before, answer.after) for which in ("version", "desired")]
        places = sorted(order.index(version) for version in known if version is not None)
        return order[places[0] : places[-1] + 1] if answer.after else order[places[0] :]

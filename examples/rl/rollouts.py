"""Batches of rollouts on their way from the orchestrator to the trainer: one file each in a shared directory."""

from __future__ import annotations

import os
import pathlib
import time

import msgspec

LOOK_S = 0.05


class Answer(msgspec.Struct, frozen=True):
    """`tokens` and `logprobs`: as sampled, one for one, by the version that made them; its end token included."""

    tokens: list[int]
    logprobs: list[float]
    reward: float


class Group(msgspec.Struct, frozen=True):
    """One prompt with its answers, all made by one version."""

    prompt: list[int]
    version: str
    step: int
    answers: list[Answer]


class Batch(msgspec.Struct, frozen=True):
    number: int
    groups: list[Group]


class Batches:
    """The directory. One orchestrator puts, the trainer's rank 0 takes; numbers only grow."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def last(self) -> int:
        """The highest number that was put; -1 for none."""
        return max(self._numbers(), default=-1)

    def put(self, batch: Batch) -> None:
        """Durability: it stands, whole, once this returned."""
        making = self._directory / f".{batch.number:06d}.making"
        with making.open("wb") as file:
            file.write(msgspec.json.encode(batch))
            file.flush()
            os.fsync(file.fileno())
        making.rename(self._path(batch.number))

    def take(self, number: int) -> Batch:
        """The first batch of this number or later; waits for it. It stays, for trainers that have to go back."""
        while not (there := [one for one in self._numbers() if one >= number]):
            time.sleep(LOOK_S)
        return msgspec.json.decode(self._path(min(there)).read_bytes(), type=Batch)

    def forget(self, before: int) -> None:
        """Delete what no trainer will ask for again."""
        for number in self._numbers():
            if number < before:
                self._path(number).unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        return [int(name.removesuffix(".json")) for name in os.listdir(self._directory) if name.endswith(".json")]

    def _path(self, number: int) -> pathlib.Path:
        return self._directory / f"{number:06d}.json"

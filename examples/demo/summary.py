"""What the demo says at the end: what was survived, in figures, and whether every claim held."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import Protocol

from examples.demo.watching import Watch

RISE_MIN = 0.15  # of the mean reward, which lies between 0 and 1


@dataclasses.dataclass(frozen=True)
class Claim:
    text: str
    holds: bool
    evidence: str


class Ended(Protocol):
    """A process: its exit code, and whether it was killed on purpose."""

    name: str
    killed: bool

    @property
    def code(self) -> int | None: ...


def claims(watch: Watch, processes: Sequence[Ended], planted: str) -> Iterator[Claim]:
    """Each with what it rests on."""
    yield _exits(processes)
    yield _requests(watch)
    yield _reward(watch)
    yield _served(watch, planted)
    yield _ended(watch)


def figures(watch: Watch) -> str:
    """How many versions came and went."""
    published = {event.version for event in watch.events("published")}
    swept = {event.version for event in watch.events("swept")}
    refused = {event.version for event in watch.events("refused", "rejected")}
    served = set(_loads(watch))
    return (
        f"versions: {len(published)} published, {len(served)} served, {len(swept)} swept, {len(refused)} refused, "
        f"{len(watch.there())} left"
    )


def _exits(processes: Sequence[Ended]) -> Claim:
    bad = [f"{one.name}: {one.code}" for one in processes if not one.killed and one.code != 0]
    killed = sum(one.killed for one in processes)
    good = f"{len(processes) - killed} processes, spare and servers included; {killed} more were killed on purpose"
    return Claim("every process that was not killed has exited with 0", not bad, "; ".join(bad) or good)


def _requests(watch: Watch) -> Claim:
    told = [event.fields for event in watch.events("measured") if "requests_answered" in event.fields][-1]
    answered, retried, failed = (told[f"requests_{name}"] for name in ("answered", "retried", "failed"))
    return Claim("no request failed", failed == 0, f"{answered} answered, {retried} tries in vain, {failed} failed")


def _reward(watch: Watch) -> Claim:
    """The first and the last tenth of all batches; the same of the control, which answers the same prompts."""
    told = sorted((e.fields for e in watch.events("measured") if "reward" in e.fields), key=lambda one: one["batch"])
    first, last = _tenths([one["reward"] for one in told])
    control_first, control_last = _tenths([one["control_reward"] for one in told if "control_reward" in one])
    rose = min(last - first, last - control_last) >= RISE_MIN
    words = f"{first:.2f} -> {last:.2f}; with frozen weights {control_first:.2f} -> {control_last:.2f}"
    return Claim("reward rose, and beyond that of frozen weights", rose, words)


def _tenths(values: list[float]) -> tuple[float, float]:
    """Means of the first and the last tenth."""
    tenth = max(1, round(len(values) / 10))
    return statistics.fmean(values[:tenth]), statistics.fmean(values[-tenth:])


def _served(watch: Watch, planted: str) -> Claim:
    """Only what a trainer has published was ever loaded."""
    published = {event.version for event in watch.events("published")}
    strange = {version for version in _loads(watch) if version not in published}
    words = f"{len(_loads(watch))} loads, all of published versions"
    if planted:
        refused = [e.reason for e in watch.events("refused") if e.version == planted]
        words += f"; the planted one was refused: {refused[0]}" if refused else "; the planted one was passed over"
    return Claim("no server loaded what no trainer published", not strange, ", ".join(sorted(strange)) or words)


def _loads(watch: Watch) -> list[str]:
    return [str(e.version) for e in watch.events("server_state") if e.version and e.fields.get("state") == "ready"]


def _ended(watch: Watch) -> Claim:
    newest = watch.newest()
    want = watch.run.config.steps
    return Claim("the training reached its last step", newest is not None and newest.step == want, f"step {want}")

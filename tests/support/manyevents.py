"""The event files of a run that never was: as many nodes, servers, versions and failovers as wanted, and as hostile.

`Scale()` is a run on a laptop; `FULL` is 1 000 nodes, 200 servers and 10 000 versions. The same seed writes the same.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
import pathlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from holdfast.events import Event

START_S = dt.datetime(2026, 11, 20, 9, 0, tzinfo=dt.UTC).timestamp()
LEASE_S = 1.0
FAULTS = ("trainer node killed in the middle of a publish", "orchestrator stalled", "inference server killed")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a run is. `loaded`: the part of all versions that each server loads."""

    nodes: int = 2
    spares: int = 1
    servers: int = 2
    versions: int = 40
    step_s: float = 3.0
    failovers: int = 2
    loaded: float = 0.8
    refusals: int = 2
    seed: int = 7


FULL = Scale(nodes=1000, spares=24, servers=200, versions=10_000, step_s=6.0, failovers=40, loaded=0.25, refusals=60)


@dataclass
class File:
    """One writer's file."""

    directory: pathlib.Path
    process: str
    boot_s: float
    lines: list[tuple[float, bytes]] = field(default_factory=list)

    def say(self, at_s: float, event: str, reason: str = "", *, version: str | None = None, **fields: Any) -> None:
        said = Event(
            time=_text(round(at_s, 3)),
            clock_s=round(at_s - self.boot_s, 6),
            process=self.process,
            event=event,
            version=version,
            reason=reason,
            fields=fields,
        )
        self.lines.append((at_s, msgspec.json.encode(said) + b"\n"))

    def close(self, nonce: int = 0) -> None:
        self.lines.sort(key=lambda line: line[0])
        name = f"{self.process}-host-{nonce:08x}.jsonl"
        (self.directory / name).write_bytes(b"".join(data for _, data in self.lines))


@functools.lru_cache(maxsize=4096)
def _text(at_s: float) -> str:
    return dt.datetime.fromtimestamp(at_s, dt.UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Change:
    """One change of round: who was lost when, and the phases."""

    round: int
    lost_s: float
    noticed_s: float
    stopped_s: float
    started_s: float
    rank: int
    lost: str
    spare: str

    @property
    def proposed_s(self) -> float:
        return self.lost_s + self.noticed_s

    @property
    def committed_s(self) -> float:
        return self.proposed_s + self.stopped_s + 0.02

    @property
    def runs_s(self) -> float:
        return self.committed_s + self.started_s


class Story:
    """The run as it went, from which every process's file follows."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.random = random.Random(scale.seed)
        self.begin_s = START_S + 4.0
        self.end_s = self.begin_s + 6.0 + scale.versions * scale.step_s
        self.seats = [f"node-{rank}" for rank in range(scale.nodes)]
        self.spares = [f"node-{scale.nodes + spare}" for spare in range(scale.spares)]
        self.changes = list(self._changes())
        self.versions = list(self._versions())

    def _changes(self) -> Iterator[Change]:
        parked, seats = list(self.spares), list(self.seats)
        for place in range(self.scale.failovers):
            at_s = self.begin_s + (place + 0.6) * (self.end_s - self.begin_s) / (self.scale.failovers + 0.4)
            rank = self.random.randrange(1, len(seats)) if len(seats) > 1 else 0
            lost, spare = seats[rank], parked.pop(0)
            noticed_s, stopped_s = LEASE_S + self.random.uniform(0.05, 0.4), self.random.uniform(0.3, 1.5)
            yield Change(place + 2, at_s, noticed_s, stopped_s, self.random.uniform(0.1, 0.5), rank, lost, spare)
            seats[rank] = spare
            parked.append(lost)  # it comes back, and waits

    def _versions(self) -> Iterator[tuple[float, int, str]]:
        """(when, cycle, name); after a failover it goes on two steps below."""
        step, at_s, cycle = 0, self.begin_s + 5.0, 1
        changes = list(self.changes)
        for _ in range(self.scale.versions):
            at_s += self.scale.step_s * self.random.uniform(0.9, 1.1)
            while changes and at_s > changes[0].lost_s:
                at_s = max(at_s, changes.pop(0).runs_s + self.scale.step_s)
                cycle, step = cycle + 1, max(0, step - 2)
            step += 1
            yield at_s, cycle, f"c{cycle:06d}-s{step:08d}-{self.random.getrandbits(32):08x}"


def write(directory: pathlib.Path, scale: Scale = FULL) -> pathlib.Path:
    """Write the event files of one run below `directory`/events; that directory."""
    events = directory / "events"
    events.mkdir(parents=True, exist_ok=True)
    story = Story(scale)
    _nodes(events, story)
    _training(events, story)
    for number in range(scale.servers):
        _server(events, story, number)
    _sweeper(events, story)
    _director(events, story)
    return events


def _nodes(events: pathlib.Path, story: Story) -> None:
    files = {name: File(events, f"agent-{name}", START_S - 500.0) for name in (*story.seats, *story.spares)}
    for place, file in enumerate(files.values()):
        file.say(START_S + 0.5 + place * 0.001, "parked", "waits for a seat")
    chief, seats = files["node-0"], list(story.seats)
    chief.say(START_S + 0.2, "coordinator", "the first to come", term=1)
    first = Change(1, story.begin_s - 1.0, 0.0, 0.8, 0.3, 0, "", "")
    _change(chief, files, first, seats, story.spares)
    for change in story.changes:
        files[change.lost].close(change.round)
        files[change.lost] = File(events, f"agent-{change.lost}", START_S - 500.0)
        files[change.lost].say(change.runs_s + 0.6 * story.scale.step_s + 3.0, "parked", "waits for a seat")
        seats[change.rank] = change.spare
        _change(chief, files, change, seats, [name for name in files if name not in seats])
    chief.say(story.end_s, "outcome", "all nodes are done", ending="succeeded", code=0)
    for name, file in files.items():
        if name in seats:
            file.say(story.end_s - 0.2, "done", round=len(story.changes) + 1)
        file.say(story.end_s + 0.3, "left", "the job has succeeded")
        file.close()


def _change(chief: File, files: dict[str, File], change: Change, seats: list[str], spares: list[str]) -> None:
    reason = f"{change.lost}.5f0e9a77 last heard {change.noticed_s:.1f} s ago" if change.lost else "the job begins"
    plan = f"{change.round:08x}"
    chief.say(change.proposed_s, "round_proposed", f"round {change.round}: {reason}", round=change.round, plan=plan)
    chief.say(
        change.committed_s,
        "round_committed",
        f"round {change.round}: {reason}",
        round=change.round,
        plan=plan,
        seats=[f"{name}.9c41d7aa" for name in seats],
        spares=[f"{name}.9c41d7aa" for name in spares],
        replaced={f"{change.lost}.5f0e9a77": reason} if change.lost else {},
        restarts=change.round - 1,
        voluntary=False,
        lost_s=round(change.noticed_s, 3),
    )
    phases = {"noticed_s": change.noticed_s, "stopped_s": change.stopped_s, "started_s": change.started_s}
    phases = {name: round(value, 3) for name, value in phases.items()}
    chief.say(change.runs_s, "round_running", "all workers run", round=change.round, **phases)
    for place, name in enumerate(seats):
        late_s = 0.7 * change.stopped_s * (place % 7) / 7
        if change.round > 1 and name != change.spare:
            files[name].say(change.proposed_s + 0.01, "stopping", reason, round=change.round - 1)
        files[name].say(change.proposed_s + 0.05 + late_s, "ready", round=change.round - 1)
        files[name].say(change.committed_s + change.started_s * (0.5 + place % 5 / 10), "running", round=change.round)


def _training(events: pathlib.Path, story: Story) -> None:
    orchestrator = File(events, "orchestrator", START_S - 900.0)
    trainer = File(events, "trainer-0", START_S - 500.0)
    publisher, cycle_now = File(events, "publisher", START_S - 500.0), 0
    for place, (at_s, cycle, name) in enumerate(story.versions):
        if cycle != cycle_now:
            if cycle_now:
                publisher.close(cycle_now)
                publisher = File(events, "publisher", START_S - 500.0)
            why = "first claim of the channel" if cycle == 1 else f"round {cycle} supersedes round {cycle - 1}"
            publisher.say(at_s - 1.0, "claimed", why, cycle=cycle, starts_from=None)
            cycle_now = cycle
        step, part = int(name[9:17]), place / len(story.versions)
        publisher.say(at_s, "published", version=name, bytes=1_048_576 + step, kind="adapter")
        noise = story.random.gauss(0, 0.05)
        reward = 0.16 + 0.66 / (1 + math.exp(-9 * (part - 0.4))) + noise
        loss = 0.9 * math.exp(-3 * part) + 0.1 + abs(noise)
        trainer.say(at_s - 0.2, "measured", step=step, loss=round(loss, 4), grad_norm=round(1.5 + 3 * noise, 4))
        orchestrator.say(
            at_s - 0.4,
            "measured",
            step=step,
            reward=round(min(1.0, max(0.0, reward)), 4),
            control_reward=round(0.17 + story.random.gauss(0, 0.03), 4),
            staleness=story.random.choice((0, 0, 1, 1, 1, 2)),
            requests_answered=64 * (place + 1),
            requests_retried=place // 10,
            requests_failed=0,
        )
    for file in (orchestrator, trainer):
        file.close()
    publisher.close(cycle_now)


def _server(events: pathlib.Path, story: Story, number: int) -> None:
    sync = File(events, f"sync-rollout-{number}", START_S - 40.0 * number)
    consumer = File(events, f"consumer-rollout-{number}", START_S - 40.0 * number)
    url = f"http://10.0.{number // 250}.{number % 250 + 1}:8000"
    told = {"server": url, "adapter": "policy"}
    sync.say(START_S + 1.0, "server_state", "it was never looked at", state="unknown", **told)
    consumer.say(START_S + 1.1, "registered", incarnation=f"rollout-{number}.000001-9c41d7aa", holds=[])
    before, free_s = None, 0.0
    refused = (
        {story.random.randrange(len(story.versions)) for _ in range(story.scale.refusals)} if number == 0 else set()
    )
    for place, (at_s, _, name) in enumerate(story.versions):
        seen_s = at_s + story.random.uniform(0.05, 0.4)
        if seen_s < free_s or story.random.random() > story.scale.loaded:
            continue
        if place in refused:
            consumer.say(seen_s, "refused", f"w.bin: block 0 has the digest {place:032x}", version=name)
            continue
        load_s = story.random.uniform(0.15, 0.9)
        free_s = seen_s + load_s + 0.3
        consumer.say(seen_s, "given", "next of the lineage", version=name, followed=1)
        sync.say(seen_s + 0.1, "server_state", f"loads {name}", version=before, state="updating", **told)
        sync.say(seen_s + 0.1 + load_s, "engine_did", version=name, server=url, action="load", took_s=load_s)
        sync.say(seen_s + 0.11 + load_s, "server_state", f"serves {name}", version=name, state="ready", **told)
        consumer.say(seen_s + 0.12 + load_s, "acknowledged", version=name)
        consumer.say(seen_s + 0.2 + load_s, "released", version=name)
        if before is not None:
            sync.say(seen_s + 0.25 + load_s, "engine_did", version=before, server=url, action="unload", took_s=0.02)
        before = name
    if number == 1:
        dies_s = story.begin_s + 0.75 * (story.end_s - story.begin_s)
        sync.say(dies_s, "engine_failed", "connection refused", server=url, action="load", code="gone")
        sync.say(dies_s + 0.1, "server_state", "connection refused", state="gone", **told)
        sync.say(dies_s + 4.0, "server_state", f"serves {before}", version=before, state="ready", **told)
    for file in (sync, consumer):
        file.say(story.end_s, "closed", "left in order")
        file.close(number)


def _sweeper(events: pathlib.Path, story: Story) -> None:
    file = File(events, "sweeper", START_S - 500.0)
    for place, (_, _, name) in enumerate(story.versions[:-3]):
        at_s = story.versions[place + 3][0] + 0.5
        file.say(at_s, "tombstone", "goes: nobody holds it and newer versions are kept", version=name)
        file.say(at_s + 1.0, "swept", "nobody holds it and newer versions are kept", version=name)
    file.close()


def _director(events: pathlib.Path, story: Story) -> None:
    file = File(events, "director", START_S - 900.0)
    for place, change in enumerate(story.changes):
        file.say(change.lost_s, "fault", FAULTS[place % len(FAULTS)], target=f"agent-{change.lost}")
        file.say(change.runs_s + 2.0, "survived", "trains again, at the same place", target=f"agent-{change.lost}")
    file.close()

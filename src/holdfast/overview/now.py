"""A run as it is now: what `holdfast status` shows beside the channel, and what --json has of it."""

from __future__ import annotations

import msgspec


class NodeNow(msgspec.Struct, frozen=True, kw_only=True):
    """One node, as its agent told it last.

    Attributes:
        state: parked, ready, running, stopping, done, unhealthy, left; `replaced`: it lost its seat and has not said
            anything since; `unknown`: nothing of it was read.
        round: of which it speaks.
        group_rank: its seat in the present round, or None.
        spare: it could take a seat.
        silent_s: for how long its file has stood still when somebody else's changed (seconds).
    """

    node: str
    state: str
    round: int | None = None
    group_rank: int | None = None
    spare: bool = False
    silent_s: float = 0.0
    reason: str = ""


class Failover(msgspec.Struct, frozen=True, kw_only=True):
    """A change of round that a failure caused. Times in seconds; None: it is under way, or was not told.

    Attributes:
        replaced: member that lost its seat -> why.
        noticed_s: from the last sign of life of the node that was lost to the decision; 0 if only workers failed.
        stopped_s: until all had ended their workers; started_s: from there until all ran.
        total_s: all of it.
    """

    round: int
    time: str
    replaced: dict[str, str]
    noticed_s: float | None = None
    stopped_s: float | None = None
    started_s: float | None = None
    total_s: float | None = None


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How the job ended."""

    ending: str
    code: int | None
    reason: str
    time: str


class JobNow(msgspec.Struct, frozen=True, kw_only=True):
    """The job.

    Attributes:
        round: the committed one; 0: none yet. `reason`, `since`: why and when it began.
        waiting: what the coordinator waits for, or that another round is proposed; "" if neither.
        seats, running, spares: how many nodes have a seat, say that their workers run, could take a seat.
        states: how many nodes are in each state; those that are silent count as `silent`.
        failovers: how many were found in what was read.
    """

    run: str | None
    attempt: str | None
    round: int
    reason: str
    since: str
    coordinator: str | None
    restarts: int
    waiting: str
    seats: int
    running: int
    spares: int
    states: dict[str, int]
    failovers: int
    last_failover: Failover | None
    outcome: Ended | None
    nodes: list[NodeNow]


class ServerNow(msgspec.Struct, frozen=True, kw_only=True):
    """One inference server for one channel, as its sync proved it last.

    Attributes:
        state: ready, updating, lagging, quarantined, gone, unknown; `silent`: its sync says nothing any more.
        version: what it serves, proved; None: unknown, or nothing.
        behind_versions: how many newer ones were published in the lineage; None: not known.
        behind_steps: by how many steps the newest is ahead; None: it serves nothing of the lineage.
    """

    server: str
    adapter: str
    sync: str
    state: str
    reason: str
    time: str
    version: str | None = None
    step: int | None = None
    behind_versions: int | None = None
    behind_steps: int | None = None
    outside_lineage: bool = False


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The last value of one series."""

    name: str
    value: float
    step: int | None
    process: str
    time: str


class Anomaly(msgspec.Struct, frozen=True, kw_only=True):
    """Something that went wrong; alike ones of one process are told once. `kind`: as in `report`."""

    kind: str
    what: str
    process: str
    time: str
    num: int
    version: str
    reason: str


class EventsRead(msgspec.Struct, frozen=True, kw_only=True):
    """What all of this comes from. `left_out`: older files that were not read; `last`: the last change of any."""

    files: int
    left_out: int
    bytes: int
    last: str | None


class RunNow(msgspec.Struct, frozen=True, kw_only=True):
    """All that event files tell of a run. `problems`: what a person should look at."""

    newest: str | None
    job: JobNow | None
    servers: list[ServerNow]
    measured: list[Measured]
    anomalies: list[Anomaly]
    events: EventsRead
    problems: list[str]

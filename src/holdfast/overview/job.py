"""The job as its agents tell it: the newest round, who sits where, and how the last failover went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from holdfast.events import Event
from holdfast.overview.now import Ended, Failover, JobNow, NodeNow
from holdfast.overview.tails import AGENT, CONTROL, Heard, Tail
from holdfast.story.kinds import NODE_STATES
from holdfast.story.telling import FileClock, clip, number

SILENT_S = 100.0  # an agent touches its file every 30 s
UNHEARD_S = 300.0  # two machines' clocks may differ
FORGOTTEN_S = 24 * 3600.0
SEATS_MAX = 100_000
REPLACED_MAX = 20
_OURS = CONTROL | {"waiting"}
_HERE = frozenset({"parked", "ready"})
_HAD_A_SEAT = frozenset({"running", "ready", "done", "stopping"})


def moment(event: Event) -> float:
    """When it was, by its writer's wall clock (seconds since 1970); 0 if that cannot be read."""
    return FileClock().place(event) or 0.0


class Decided(msgspec.Struct):
    """What coordinators decided, in the order of time."""

    round: int = 0
    reason: str = ""
    since: str = ""
    coordinator: str | None = None
    restarts: int = 0
    waiting: str = ""
    seats: tuple[str, ...] = ()
    failovers: int = 0
    last_failover: Failover | None = None
    outcome: Ended | None = None

    def hear(self, event: Event) -> None:
        fields = event.fields
        match event.event:
            case "coordinator":
                self.coordinator = event.process.removeprefix(AGENT)
            case "waiting":
                self.waiting = clip(event.reason)
            case "round_proposed":
                self.waiting = clip(f"another round is proposed: {event.reason}")
            case "round_committed":
                self._committed(event)
            case "round_running":
                self._running(fields)
            case "outcome":
                code = number(fields.get("code"))
                ending = clip(fields.get("ending", "unknown"), 40)
                self.outcome = Ended(
                    ending=ending,
                    code=None if code is None else int(code),
                    reason=clip(event.reason),
                    time=clip(event.time, 40),
                )

    def _committed(self, event: Event) -> None:
        self.round = _whole(event.fields.get("round"))
        self.reason, self.since, self.waiting = clip(event.reason), clip(event.time, 40), ""
        self.restarts = _whole(event.fields.get("restarts"))
        self.seats = _names(event.fields.get("seats"))
        self.coordinator = event.process.removeprefix(AGENT)
        replaced = event.fields.get("replaced")
        if isinstance(replaced, Mapping) and replaced:
            self.failovers += 1
            shown = {clip(name, 120): clip(why) for name, why in list(replaced.items())[:REPLACED_MAX]}
            self.last_failover = Failover(round=self.round, time=self.since, replaced=shown)

    def _running(self, fields: Mapping[str, Any]) -> None:
        last = self.last_failover
        if last is None or last.round != _whole(fields.get("round")):
            return
        noticed, stopped, started = (
            number(fields.get(name)) or 0.0 for name in ("noticed_s", "stopped_s", "started_s")
        )
        self.last_failover = msgspec.structs.replace(
            last, noticed_s=noticed, stopped_s=stopped, started_s=started, total_s=round(noticed + stopped + started, 3)
        )


def tell(heard: Heard) -> JobNow | None:
    """The job that these files tell of; None: no agent has said anything lately."""
    recent = [
        tail
        for tail in heard.tails
        if tail.events and tail.events[-1].process.startswith(AGENT) and heard.silent_s(tail) <= FORGOTTEN_S
    ]
    if not recent:
        return None
    decided = _decided(recent)
    agents = {tail.events[-1].process: tail for tail in recent}
    decider = agents.get(f"{AGENT}{decided.coordinator}")
    run, attempt = _job_of(decider)
    ours = [tail for tail in agents.values() if attempt is None or _job_of(tail)[1] in (None, attempt)]
    nodes = _nodes([(tail, heard.silent_s(tail)) for tail in ours], decided)
    states = Counter("silent" if _is_silent(node, decided) else node.state for node in nodes)
    return JobNow(
        run=run,
        attempt=attempt,
        round=decided.round or max((node.round or 0 for node in nodes), default=0),
        reason=decided.reason,
        since=decided.since,
        coordinator=decided.coordinator,
        restarts=decided.restarts,
        waiting=decided.waiting if decided.outcome is None else "",
        seats=len(decided.seats) or sum(node.state == "running" for node in nodes),
        running=sum(node.state == "running" for node in nodes),
        spares=sum(node.spare for node in nodes),
        states=dict(states),
        failovers=decided.failovers,
        last_failover=decided.last_failover,
        outcome=decided.outcome,
        nodes=nodes,
    )


def _decided(agents: Sequence[Tail]) -> Decided:
    said = sorted((event for tail in agents for event in tail.events if event.event in _OURS), key=moment)
    decided = Decided()
    for event in said:
        if event.event == "coordinator" and number(event.fields.get("term")) == 1.0:
            decided = Decided()  # the first coordinator of another attempt
        decided.hear(event)
    return decided


def unheard_s(heard: Heard, now_s: float | None) -> float:
    """For how long no agent's file has changed, if this machine's clock and the storage's agree (seconds)."""
    changed_s = [tail.changed_s for tail in heard.tails if tail.events and tail.events[-1].process.startswith(AGENT)]
    return max(0.0, now_s - max(changed_s)) if now_s is not None and changed_s else 0.0


def problems(job: JobNow, unheard_s: float = 0.0) -> list[str]:
    """What of it needs a person. `unheard_s`: for how long no agent has been heard."""
    if job.outcome is not None:
        ended = job.outcome
        return [f"the job has {ended.ending}: {ended.reason}"] if ended.ending not in ("succeeded", "stopped") else []
    if unheard_s > UNHEARD_S and any(node.state not in ("left", "lost") for node in job.nodes):
        return [f"no agent has been heard for {unheard_s:.0f} s by this machine's clock, and there is no outcome"]
    found = [f"the job waits: {job.waiting}"] if job.waiting.startswith("waiting") else []
    silent = [node for node in job.nodes if node.group_rank is not None and node.silent_s > SILENT_S]
    if silent:
        names = ", ".join(node.node for node in silent[:3])
        more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
        found.append(f"nothing is heard from {names}{more}, with a seat: for {silent[0].silent_s:.0f} s")
    for state, what in (("lost", "gave up"), ("store_away", "cannot reach the job's store")):
        those = [node for node in job.nodes if node.state == state]
        if those:
            who = those[0].node if len(those) == 1 else f"{len(those)} agents, {those[0].node} for one,"
            found.append(f"{who} {what}: {those[0].reason}")
    return found


def _nodes(agents: Sequence[tuple[Tail, float]], decided: Decided) -> list[NodeNow]:
    """Those with a seat first, by group rank, then the others by name."""
    ranks = {member.rpartition(".")[0]: rank for rank, member in enumerate(decided.seats)}
    nodes = {}
    for tail, silent_s in agents:
        node = _node(tail, silent_s, ranks, decided)
        nodes[node.node] = node
    for name, rank in ranks.items():
        if name not in nodes:
            nodes[name] = NodeNow(node=name, state="unknown", group_rank=rank)
    seated = [nodes[name] for name in ranks]
    return seated + sorted((n for n in nodes.values() if n.group_rank is None), key=lambda node: node.node)


def _node(tail: Tail, silent_s: float, ranks: Mapping[str, int], decided: Decided) -> NodeNow:
    name = clip(tail.events[-1].process.removeprefix(AGENT), 120)
    state, round_, reason = _last_state(tail.events)
    rank = ranks.get(name)
    if rank is None and state in _HAD_A_SEAT and round_ is not None and round_ < decided.round:
        state = "replaced"
    return NodeNow(
        node=name,
        state=state,
        round=round_,
        group_rank=rank,
        spare=rank is None and state in _HERE and silent_s <= SILENT_S and decided.outcome is None,
        silent_s=round(silent_s, 1),
        reason=reason,
    )


def _last_state(events: Sequence[Event]) -> tuple[str, int | None, str]:
    """State, round, reason. An agent that gave up says afterwards that it leaves; that it gave up is what counts."""
    told: tuple[str, int | None, str] = ("unknown", None, "")
    is_back = False
    for event in reversed(events):
        name, found = event.event, (event.event, _whole(event.fields.get("round")) or None, clip(event.reason))
        if name == "lost":
            return found
        if name == "joined":
            break
        if name == "store_back":
            is_back = True
        elif told[0] == "unknown" and (name in NODE_STATES or name == "left" or (name == "store_away" and not is_back)):
            told = found
        if told[0] not in ("unknown", "left"):
            break
    return told


def _is_silent(node: NodeNow, decided: Decided) -> bool:
    return node.silent_s > SILENT_S and decided.outcome is None and node.state not in ("left", "replaced")


def _job_of(tail: Tail | None) -> tuple[str | None, str | None]:
    for event in reversed(tail.events if tail is not None else ()):
        if event.event == "joined":
            return clip(event.fields.get("run", ""), 120), clip(event.fields.get("attempt", ""), 120)
    return None, None


def _whole(value: object) -> int:
    found = number(value)
    return int(found) if found is not None and 0 <= found < 1e9 else 0


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(clip(name, 240) for name in value[:SEATS_MAX])

"""A job as people and tools see it: the records of one attempt, read and told in words. Reading changes nothing.

Nothing is decided here, and no clocks are compared: whether a member lives is told as its coordinator tells it, by a
beat that changes while it is watched. So one look knows of nobody whether it beats; `look` watches for about a beat
where all is well, and for a lease where somebody is silent.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping

import msgspec

from holdfast.core import liveness
from holdfast.core.membership import (
    Answer,
    Attempt,
    Beat,
    Control,
    Ending,
    Node,
    Outcome,
    Request,
    Roster,
    State,
    Timing,
    beat_s,
    decode,
    decode_all,
    lease_s,
    round_key,
)
from holdfast.errors import UsageError
from holdfast.rendezvous.etcd_cluster import Health
from holdfast.rendezvous.founding import ATTEMPTS, NO_ATTEMPT, Keys
from holdfast.rendezvous.kv import KeyValueStore

WATCH_S_MAX = 15.0
REST_S_MIN = 0.1
REST = 4.0  # times as long as a look took: looking at a large job is work for its store
ROSTER_TRIES = 3


class Records(msgspec.Struct, frozen=True, kw_only=True):
    """What one look found. `roster`, `timing`: of the committed round; None where it has none."""

    control: Control
    kind: str
    roster: Roster | None = None
    timing: Timing | None = None
    nodes: Mapping[str, Node] = {}
    beats: Mapping[str, Beat] = {}
    requests: Mapping[str, Request] = {}
    answers: Mapping[str, Answer] = {}


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """One member.

    Attributes:
        life: "beats" (it changed while it was watched), "silent" (unchanged for a lease), "left", "unknown" (not
            watched for long enough to tell), or "none" (it has not beaten yet).
        silent_s: for how long its beat has stood still, as watched (seconds).
        state: what it says that it is doing; null: it has not beaten yet.
        group_rank: its seat in the committed round; null: it has none.
        done: its workers of that round have succeeded.
        spare: it could take a seat now.
        infra_rank: null: it has none.
        failures: how often the workers of this node have failed.
        reason: why, in its own words.
    """

    node: str
    member: str
    life: str
    silent_s: float
    state: str | None
    group_rank: int | None
    done: bool
    spare: bool
    draining: bool
    infra_rank: int | None
    domain: str
    group: str
    host: str
    address: str
    pid: int
    version: str
    failures: int
    reason: str


class RequestView(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody has asked for. `answer` null: it has none yet."""

    request: str
    wish: str
    member: str
    by: str
    timeout_s: float
    answer: Answer | None


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a run; docs/cli.md says what each field means."""

    run: str
    attempt: str
    job: str
    store: str
    store_health: Health | None = None
    round: int
    plan: str
    proposed: str
    seats: int
    min_nodes: int
    max_nodes: int
    spares: int
    spares_wanted: int
    coordinator: str
    term: int
    address: str
    port: int
    reason: str
    restarts: int
    restart_budget: int
    replaced: dict[str, str]
    last_change: Timing | None
    outcome: Outcome | None
    watched_s: float
    nodes: list[NodeView]
    requests: list[RequestView]
    problems: list[str]


class Viewer:
    """Looks at one attempt of a run again and again, and remembers whose beats changed.

    Attributes:
        lease_s: the job's lease, as of the last look.
    """

    def __init__(self, store: KeyValueStore, keys: Keys) -> None:
        self._store = store
        self._keys = keys
        self._watch = liveness.Watch()
        self._began_s: float | None = None
        self.lease_s = 0.0

    def look(self) -> JobView:
        """One look.

        Raises:
            UsageError: code "no_such_job". IntegrityError: code "bad_record": what stands there is not ours.
        """
        found = read(self._store, self._keys)
        self.lease_s = lease_s(found.control.policy)
        now_s = time.monotonic()
        self._began_s = now_s if self._began_s is None else self._began_s
        tokens = {member: beat.count for member, beat in found.beats.items()}
        self._watch = liveness.look(self._watch, tokens, now_s, gap_s=self.lease_s / 2.0, full_lease=True)
        return view(found, self._watch, now_s - self._began_s)

    def watch(self) -> JobView:
        """Looks until it is known of every member whether it beats: for a lease, if its looks are not held up."""
        while True:
            began_s = time.monotonic()
            now = self.look()
            if not _undecided(now) or now.watched_s >= WATCH_S_MAX:
                return now
            rest_s = max(REST_S_MIN, REST * (time.monotonic() - began_s))
            threading.Event().wait(min(rest_s, beat_s(self.lease_s) / 2.0, WATCH_S_MAX - now.watched_s))


def _undecided(now: JobView) -> bool:
    return now.outcome is None and any(one.life == "unknown" for one in now.nodes)


def attempt_keys(store: KeyValueStore, attempt: str | None) -> Keys:
    """Where the keys of `attempt` are; None: of the newest that the store lists."""
    if attempt is not None:
        return Keys(attempt)
    listed = decode_all(store.list_all(ATTEMPTS), Attempt)
    return Keys(max(listed, key=lambda name: listed[name].first, default=NO_ATTEMPT))


def look(store: KeyValueStore, attempt: str | None = None) -> JobView:
    """The job as it is now, and who of it lives. `store`: opened with the run as its prefix.

    Raises:
        UsageError: code "no_such_job". IntegrityError: code "bad_record": what stands there is not ours.
    """
    return Viewer(store, attempt_keys(store, attempt)).watch()


def decode_control(store: KeyValueStore, keys: Keys) -> Control:
    """`control` as it stands. UsageError code "no_such_job": nobody has begun this job."""
    cell = store.read(keys.control)
    if cell is None:
        others = sorted(store.names(ATTEMPTS))
        raise UsageError(
            f"there is no job here (yet) with attempt {keys.attempt}",
            code="no_such_job",
            hint=f"this run has the attempts {', '.join(others[-5:])}" if others else "check --endpoint and --run",
            attempt=keys.attempt,
        )
    return decode(cell.value, Control, key=keys.control)


def read(store: KeyValueStore, keys: Keys) -> Records:
    """All records of an attempt, each as it was at some time during this call."""
    control, roster, timing = _round(store, keys)
    return Records(
        control=control,
        kind=store.traits.kind,
        roster=roster,
        timing=timing,
        nodes=decode_all(store.list_all(keys.nodes), Node),
        beats=decode_all(store.list_all(keys.beats), Beat),
        requests=decode_all(store.list_all(keys.requests), Request),
        answers=decode_all(store.list_all(keys.answers), Answer),
    )


def _round(store: KeyValueStore, keys: Keys, tries: int = ROSTER_TRIES) -> tuple[Control, Roster | None, Timing | None]:
    """`control`, and what stands of its round. A roster goes once its round is past: `control` then names another."""
    control = decode_control(store, keys)
    if not control.plan:
        return control, None, None
    roster, timing = (keys.plain(round_key(control.round, control.plan, what)) for what in ("roster", "timing"))
    found = store.get([roster, timing])
    if roster not in found and tries > 1:
        return _round(store, keys, tries - 1)
    return (
        control,
        decode(found[roster], Roster, key=roster) if roster in found else None,
        decode(found[timing], Timing, key=timing) if timing in found else None,
    )


def view(found: Records, watch: liveness.Watch, watched_s: float = 0.0) -> JobView:
    """`found` in words, with what watching the beats has told so far. Pure."""
    control, roster = found.control, found.roster or Roster()
    ranks = {member: rank for rank, member in enumerate(roster.seats)}
    members = sorted({*found.nodes, *ranks}, key=lambda member: (ranks.get(member, len(ranks)), member))
    nodes = [_node(member, found, roster, ranks, watch) for member in members]
    requests = [
        RequestView(
            request=name,
            wish=request.wish.value,
            member=request.member,
            by=request.by,
            timeout_s=request.timeout_s,
            answer=found.answers.get(name),
        )
        for name, request in sorted(found.requests.items())
    ]
    spares = sum(node.spare for node in nodes)
    return JobView(
        run=control.run,
        attempt=control.attempt,
        job=control.job,
        store=found.kind,
        round=control.round,
        plan=control.plan,
        proposed=control.proposed,
        seats=len(roster.seats),
        min_nodes=control.policy.min_nodes,
        max_nodes=control.policy.max_nodes,
        spares=spares,
        spares_wanted=control.policy.spares,
        coordinator=control.coordinator,
        term=control.term,
        address=control.address,
        port=control.port,
        reason=control.reason,
        restarts=control.restarts,
        restart_budget=control.policy.restart_budget,
        replaced=roster.replaced,
        last_change=found.timing,
        outcome=control.outcome,
        watched_s=round(watched_s, 3),
        nodes=nodes,
        requests=requests,
        problems=_problems(found, nodes, spares),
    )


def with_health(now: JobView, health: Health) -> JobView:
    """`now`, and how many members of its etcd answer; fewer than there are is a problem."""
    problems = [f"degraded: {health.text}"] if health.degraded else []
    return msgspec.structs.replace(now, store_health=health, problems=[*now.problems, *problems])


def _node(member: str, found: Records, roster: Roster, ranks: Mapping[str, int], watch: liveness.Watch) -> NodeView:
    name, _, incarnation = member.rpartition(".")
    node = found.nodes.get(member, Node(node=name, incarnation=incarnation))
    beat = found.beats.get(member)
    life, silent_s = _life(beat, watch.watched.get(member), lease_s(found.control.policy))
    draining = member in found.control.draining
    idle = beat is not None and beat.state in (State.PARKED, State.READY)
    return NodeView(
        node=node.node,
        member=member,
        life=life,
        silent_s=round(silent_s, 3),
        state=None if beat is None else beat.state.value,
        group_rank=ranks.get(member),
        done=beat is not None and beat.done and beat.round == found.control.round and member in ranks,
        spare=idle and member not in ranks and life in ("beats", "unknown") and not draining,
        draining=draining,
        infra_rank=node.infra_rank if node.infra_rank >= 0 else None,
        domain=node.domain,
        group=node.group,
        host=node.host,
        address=node.address,
        pid=node.pid,
        version=node.version,
        failures=roster.failures.get(node.node, 0),
        reason="" if beat is None else beat.reason,
    )


def _life(beat: Beat | None, seen: liveness.Watched | None, lease: float) -> tuple[str, float]:
    if beat is None or seen is None:
        return "none", 0.0
    if beat.state is State.LEFT:
        return "left", seen.silent_s
    if seen.silent_s >= lease:
        return "silent", seen.silent_s
    return ("beats" if seen.beaten else "unknown"), seen.silent_s


def _problems(found: Records, nodes: list[NodeView], spares: int) -> list[str]:
    """Why the job is not as it is wanted; [] if it is."""
    control, policy = found.control, found.control.policy
    if control.outcome is not None:
        failed = control.outcome.ending is Ending.FAILED
        return [f"the job has failed: {control.outcome.reason}"] if failed else []
    if control.round == 0:
        return [f"there is no round yet: {control.reason}"]
    if found.roster is None:
        return [f"who sits in round {control.round} cannot be read"]
    problems = [f"group rank {node.group_rank}: {node.member} {_why_lost(node)}" for node in nodes if _lost(node)]
    if len(found.roster.seats) < policy.max_nodes:
        problems.append(f"degraded: {len(found.roster.seats)} of {policy.max_nodes} nodes train")
    if spares < policy.spares:
        problems.append(f"degraded: {spares} of {policy.spares} spares")
    return problems


def _lost(node: NodeView) -> bool:
    """It has a seat, and its workers can't be running, nor have they succeeded."""
    if node.group_rank is None or node.done:
        return False
    return node.life in ("silent", "left", "none") or node.state == State.UNHEALTHY.value


def _why_lost(node: NodeView) -> str:
    if node.life == "silent":
        return f"last heard {node.silent_s:.1f} s ago"
    if node.life == "none":
        return "has never been heard"
    word = "has left" if node.life == "left" else "is unhealthy"
    return f"{word}: {node.reason}" if node.reason else word


def living(now: JobView, name: str) -> NodeView:
    """The member that `name` means: a member, or the one living member of a node of this name.

    Raises:
        UsageError: code "no_such_node": nobody of this name lives; code "ambiguous_node": several do.
    """
    for one in now.nodes:
        if one.member == name:
            return one
    lives = [one for one in now.nodes if one.node == name]
    alive = [one for one in lives if one.life in ("beats", "unknown")]
    if len(alive) == 1:
        return alive[0]
    if alive:
        names = [one.member for one in alive]
        raise UsageError(
            f"{len(names)} living members have the node name {name}: {', '.join(names)}",
            code="ambiguous_node",
            hint="give one of them",
            members=names,
        )
    last = lives[-1] if lives else None
    gone = "has left" if last is not None and last.life == "left" else "is silent"
    raise UsageError(
        f"there is no node {name} in this job" if last is None else f"node {name} {gone}",
        code="no_such_node",
        hint="`holdfast members` lists them",
        node=name,
    )


def labels(nodes: list[NodeView]) -> dict[str, str]:
    """How to call each member: by its node's name where that is enough."""
    times = Counter(one.node for one in nodes)
    return {one.member: one.node if times[one.node] == 1 else one.member for one in nodes}

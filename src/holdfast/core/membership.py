"""The records of membership, as they stand in the key-value store below `<run>/<attempt>/`; FORMAT.md shows each one.

    control                      the one cell; every transition of the job is a compare-and-set on it
    nodes/<member>               who a node is; written once, by itself
    beats/<member>               its beat and what it is doing now; written by itself, again and again
    requests/<id>                what people ask for: drain, stop; answers/<id> what became of it
    rounds/<n>/<plan>/head       the same for every node of the round
    rounds/<n>/<plan>/seats/<m>  the group rank of member m
    rounds/<n>/<plan>/roster     who sits where and what has failed so far; read by coordinators and tools only

A *member* is one life of one node: `<node>.<incarnation>`. Plans have names that are never used twice, so what a
coordinator wrote before it lost its place is never read. Records are read tolerantly: unknown fields are ignored,
missing ones have defaults, so that nodes of an older and of a newer Holdfast work in one job. `control` alone has many
writers: what one of them does not know stays as it stands.
"""

from __future__ import annotations

import enum
from typing import Any, TypeVar

import msgspec

from holdfast.errors import IntegrityError, UsageError

SCHEMA = 1
NO_INFRA_RANK = -1
NO_DOMAIN = "none"
REASON_MAX = 400
NAME_MAX = 200


class State(enum.Enum):
    """What a member is doing, in its own words."""

    PARKED = "parked"  # healthy, no workers: it may be given a seat
    READY = "ready"  # as parked, and it has said yes to the plan
    RUNNING = "running"  # its workers run, in `round`
    STOPPING = "stopping"  # it ends its workers of `round`, to come back
    DONE = "done"  # its workers of `round` have succeeded; it waits for the others
    UNHEALTHY = "unhealthy"  # its health check fails: it stays out
    LEFT = "left"  # it does not come back


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """nodes/<member>: who a node is. Written once.

    Attributes:
        address: where its workers can be reached.
        infra_rank: its place in the infrastructure (SLURM_PROCID and the like), −1 where there is none.
        domain: nodes of one domain share a fast fabric.
        group: the replacement group that it belongs to, used whole or not at all; "" for none.
        group_size: how many nodes that group has.
    """

    schema: int = SCHEMA
    node: str
    incarnation: str
    host: str = ""
    address: str = ""
    pid: int = 0
    infra_rank: int = NO_INFRA_RANK
    domain: str = NO_DOMAIN
    group: str = ""
    group_size: int = 1
    version: str = ""

    @property
    def member(self) -> str:
        return f"{self.node}.{self.incarnation}"


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """beats/<member>. It proves life while `count` changes.

    Attributes:
        plan: READY: the plan that it has said yes to; RUNNING and after: the plan of its seat.
        round: the round that it had a seat in last; 0: never.
        failed, done: its own workers failed, or have succeeded, in `round`.
        port: READY: a port that is free there, for the workers' store should it get group rank 0.
        drain_ready: all its workers say that now is a good time to be stopped.
        reason: why, in words.
    """

    count: int
    state: State = State.PARKED
    plan: str = ""
    round: int = 0
    failed: bool = False
    done: bool = False
    port: int = 0
    drain_ready: bool = False
    reason: str = ""


class Ending(enum.Enum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # somebody asked for it
    SUPERSEDED = "superseded"  # a later attempt of the same run has begun


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How the job ended. Written once. `code`: what every node with a seat exits with."""

    ending: Ending
    code: int
    reason: str


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of one job, as its first node brought them. Times in seconds.

    Attributes:
        min_nodes, max_nodes: how many nodes train; those beyond are spares.
        spares: how many spares are wanted; more are welcome.
        segment: so many nodes at a time are taken from one domain.
        lease_s: who is silent for so long is lost. 0: 1 s, and more with the size of the job.
        last_call_s: how long a node that beats may take to come back before a spare takes its place, and how long
            more nodes are waited for once there are min_nodes.
        stop_s: how long it may take if there is no spare.
        wait_s: how long too few nodes are waited for before the job fails.
        restart_budget: how many rounds may be ended by a failure, in the whole job; −1: any number.
        node_budget: a node whose own workers failed so often is set aside, if another can take its place.
    """

    min_nodes: int = 1
    max_nodes: int = 1
    spares: int = 0
    segment: int = 1
    lease_s: float = 0.0
    last_call_s: float = 5.0
    stop_s: float = 45.0
    wait_s: float = 900.0
    restart_budget: int = 10
    node_budget: int = 3


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """control: the one cell.

    Attributes:
        job, first: the job of a publisher's term, and what is added to a round to get the term's round.
        term, coordinator: how often the coordinator has changed, and which member it is.
        nonce: new with each writing; tells a writer whether what stands there is its own.
        round, plan: the round that is committed (0: none yet) and its plan.
        address, port: where the workers of group rank 0 put their store.
        proposed: the plan that is proposed for the next round, or "".
        draining: members that are asked to leave.
        restarts: how much of the restart budget is used.
        reason: of the last change, or what is waited for.
    """

    schema: int = SCHEMA
    run: str
    attempt: str
    job: str
    first: int = 0
    policy: Policy
    term: int
    coordinator: str
    nonce: str
    round: int = 0
    plan: str = ""
    address: str = ""
    port: int = 0
    proposed: str = ""
    draining: tuple[str, ...] = ()
    restarts: int = 0
    reason: str = ""
    outcome: Outcome | None = None


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """rounds/<n>/<plan>/head. `world_size` in nodes; `spares`: how many were parked; `reason`: why it began."""

    schema: int = SCHEMA
    round: int
    plan: str
    world_size: int
    spares: int = 0
    restarts: int = 0
    reason: str = ""


class Roster(msgspec.Struct, frozen=True, kw_only=True):
    """rounds/<n>/<plan>/roster: what a coordinator has to know beyond `control`, so that its successor can go on.

    Attributes:
        seats: members, by group rank.
        spares: members that were parked then.
        replaced: member that lost its seat -> why.
        failures: node -> how often its own workers failed.
        restarts: the budget used when this round begins.
        lost_s: silence of the lost node when it was noticed (seconds); 0: nobody was lost.
    """

    schema: int = SCHEMA
    round: int = 0
    plan: str = ""
    seats: tuple[str, ...] = ()
    spares: tuple[str, ...] = ()
    replaced: dict[str, str] = {}
    failures: dict[str, int] = {}
    restarts: int = 0
    reason: str = ""
    voluntary: bool = False
    lost_s: float = 0.0


class Wish(enum.Enum):
    DRAIN = "drain"
    STOP = "stop"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """requests/<id>: what somebody asks for. `member`: who is to leave; `code`: what STOP has the job exit with."""

    schema: int = SCHEMA
    wish: Wish
    member: str = ""
    timeout_s: float = 60.0
    code: int = 0
    by: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """answers/<id>: what became of a request."""

    schema: int = SCHEMA
    done: bool
    reason: str


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """attempts/<attempt>, beside the attempts' keys: what a publisher's term is in it (job, first + round)."""

    job: str
    first: int


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """rounds/<n>/<plan>/timing: how long the phases of a change of round took, on the coordinator's clock (seconds).

    Attributes:
        noticed_s: from the last sign of life of the node that was lost to the decision; 0 if nobody was.
        stopped_s: from the proposal to the last yes: workers ended, health checks passed.
        started_s: from there until every node said that it runs.
    """

    schema: int = SCHEMA
    round: int
    noticed_s: float = 0.0
    stopped_s: float = 0.0
    started_s: float = 0.0


class Rank(msgspec.Struct, frozen=True):
    """rounds/<n>/<plan>/seats/<member>."""

    group_rank: int


T = TypeVar("T")
Record = TypeVar("Record", Node, Beat, Control, Head, Roster, Rank, Request, Answer, Attempt, Timing)


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)


def encode_over(control: Control, stands: bytes, *, key: str) -> bytes:
    """`control` as it is to replace what `stands`. Fields that this Holdfast does not know, there or in its policy,
    stay byte for byte: a newer one has written them. IntegrityError code "bad_record"."""
    ours, theirs = (_members(data, key) for data in (encode(control), stands))
    policies = [_members(bytes(record.get("policy", b"{}")), key) for record in (theirs, ours)]
    policy = msgspec.Raw(msgspec.json.encode({**policies[0], **policies[1]}))
    return msgspec.json.encode({**theirs, **ours, "policy": policy})


def _members(data: bytes, key: str) -> dict[str, msgspec.Raw]:
    """A JSON object, its values as they are written."""
    return _checked(data, dict[str, msgspec.Raw], key)


def decode(data: bytes, kind: type[Record], *, key: str) -> Record:
    """The record at `key`. IntegrityError code "bad_record": it is not one of ours."""
    return _checked(data, kind, key)


def _checked(data: bytes, kind: type[T], key: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{key}: {error}", code="bad_record", hint="is this the store of another job?") from error


def decode_all(found: dict[str, bytes], kind: type[Record]) -> dict[str, Record]:
    """Those of `found` that are records of ours; what is not is nobody's word."""
    records: dict[str, Record] = {}
    for key, data in found.items():
        try:
            records[key] = decode(data, kind, key=key)
        except IntegrityError:
            continue
    return records


def round_key(number: int, plan: str, what: str) -> str:
    return f"rounds/{number}/{plan}/{what}"


def seat_key(number: int, plan: str, member: str) -> str:
    return round_key(number, plan, f"seats/{member}")


def check_policy(policy: Policy) -> Policy:
    """`policy` if it can be followed. UsageError code "bad_policy" says which setting to change."""
    low, high, segment = policy.min_nodes, policy.max_nodes, policy.segment
    problems: list[tuple[bool, str, str]] = [
        (low < 1, f"MIN is {low}", "give --nnodes MIN:MAX with MIN of at least 1"),
        (low > high, f"MIN {low} is over MAX {high}", "give --nnodes MIN:MAX with MIN ≤ MAX"),
        (segment < 1, f"a segment has {segment} nodes", "give --segment of at least 1"),
        (segment >= 1 and high % segment != 0, f"segments of {segment} do not divide {high} nodes", "change --segment"),
        (policy.spares < 0, f"{policy.spares} spares", "give --spares of at least 0"),
        (policy.restart_budget < -1, f"a budget of {policy.restart_budget}", "give --restart-budget of at least -1"),
        (policy.node_budget < 1, f"a node's budget of {policy.node_budget}", "give it at least 1"),
        (policy.lease_s != 0 and not 0.2 <= policy.lease_s <= 3600, f"a lease of {policy.lease_s:g} s", "0.2 to 3600"),
        (not 0 <= policy.last_call_s <= 3600, f"a last call of {policy.last_call_s:g} s", "0 to 3600"),
        (not 0 <= policy.stop_s <= 3600, f"{policy.stop_s:g} s to stop", "0 to 3600"),
        (not 0 <= policy.wait_s <= 7 * 86400, f"{policy.wait_s:g} s of waiting for nodes", "0 s to a week"),
    ]
    for wrong, what, hint in problems:
        if wrong:
            raise UsageError(f"the job's rules cannot be followed: {what}", code="bad_policy", hint=hint)
    return policy


def check_name(name: str) -> str:
    """A node's name that can stand in a key. UsageError code "bad_name"."""
    if not name or len(name) > NAME_MAX or not all(c.isalnum() or c in "-_.:" for c in name) or not name.isascii():
        raise UsageError(
            f"{name[:NAME_MAX]!r} cannot be a node's name",
            code="bad_name",
            hint=f"letters, digits, '-', '_', '.' and ':', at most {NAME_MAX}",
        )
    return name


def lease_s(policy: Policy) -> float:
    """After how long a silence a node is lost (seconds): as told, or 1 s, and 1 ms more for each node beyond 1 000."""
    return policy.lease_s if policy.lease_s > 0 else max(1.0, (policy.max_nodes + policy.spares) / 1000)


def beat_s(lease: float) -> float:
    """How often a member beats (seconds)."""
    return lease / 5.0


def credit_s(lease: float) -> float:
    """How much silence one look can add (seconds): an outage of nearly half a lease must not cost a healthy node."""
    return 1.5 * beat_s(lease)


def fields(record: msgspec.Struct) -> dict[str, Any]:
    """The record as --json shows it."""
    shown = msgspec.to_builtins(record)
    return dict(shown)

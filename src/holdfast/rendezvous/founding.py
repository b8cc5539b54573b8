"""Founding: the first node of a job writes `control`; whoever comes later finds it there, or how the job ended.

Below a run's prefix every attempt has keys of its own. Where a store outlives attempts (etcd, a store run by itself),
`attempts` lists them: the first node of a new attempt ends those that have no outcome yet (*superseded*), so that a
late agent of an old attempt leaves, and what its trainer publishes is fenced, for rounds go on growing: a publisher's
term is (job, first + round, nonce), and `first` grows with the attempts.
"""

from __future__ import annotations

import re
import secrets

import msgspec

from holdfast.core.membership import Attempt, Control, Ending, Outcome, Policy, decode, decode_all, encode, encode_over
from holdfast.rendezvous.kv import Cell, KeyValueStore

ROUNDS_MAX = 1_000_000
RESTARTS_MAX = 1000
CONTROL = "control"
ATTEMPTS = "attempts"
NO_ATTEMPT = "0"
_NUMBERED = re.compile(r"(\d{1,12})(?:\.(\d{1,3}))?")


class Keys:
    """Where the keys of one attempt are."""

    def __init__(self, attempt: str | None) -> None:
        self.attempt = attempt or NO_ATTEMPT
        self.control = f"{self.attempt}/{CONTROL}"
        self.nodes = f"{self.attempt}/nodes"
        self.beats = f"{self.attempt}/beats"
        self.requests = f"{self.attempt}/requests"
        self.answers = f"{self.attempt}/answers"

    def plain(self, key: str) -> str:
        return f"{self.attempt}/{key}"


def found(store: KeyValueStore, run: str, attempt: str | None, policy: Policy, member: str) -> Cell:
    """`control` as it stands once somebody has founded the job: this member, or another one that was quicker."""
    keys = Keys(attempt)
    others = decode_all(store.list_all(ATTEMPTS), Attempt)
    mine = _term_of(run, attempt, {name: other for name, other in others.items() if name != keys.attempt})
    newer = [name for name, other in others.items() if name != keys.attempt and other.first > mine.first]
    outcome = Outcome(ending=Ending.SUPERSEDED, code=1, reason=f"attempt {newer[0]} has begun") if newer else None
    control = Control(
        run=run,
        attempt=keys.attempt,
        job=mine.job,
        first=mine.first,
        policy=policy,
        term=1,
        coordinator=member,
        nonce=secrets.token_hex(8),
        reason=f"founded by {member}",
        outcome=outcome,
    )
    store.put_listed(ATTEMPTS, keys.attempt, encode(mine))
    for name in others:
        if name != keys.attempt and name not in newer:
            _supersede(store, name, keys.attempt)
    return store.compare_and_set(keys.control, 0, encode(control))


def _term_of(run: str, attempt: str | None, others: dict[str, Attempt]) -> Attempt:
    """Attempts that are numbered, as Slurm's are, are in the order of their numbers, in any store. Others follow what
    the store remembers; where it remembers nothing, the job is a new one, and a channel's old claim is waited for."""
    numbered = _NUMBERED.fullmatch(attempt) if attempt is not None else None
    if numbered is not None:
        number = int(numbered[1]) * RESTARTS_MAX + int(numbered[2] or 0)
        return Attempt(job=run, first=number * ROUNDS_MAX)
    if others:
        last = max(others.values(), key=lambda other: other.first)
        return Attempt(job=last.job, first=last.first + ROUNDS_MAX)
    return Attempt(job=f"{run}.{secrets.token_hex(4)}", first=0)


def _supersede(store: KeyValueStore, old: str, new: str) -> None:
    """End attempt `old`, unless it has ended. Its coordinator may be writing: asked again until the outcome stands."""
    keys = Keys(old)
    cell = store.read(keys.control)
    while cell is not None:
        control = decode(cell.value, Control, key=keys.control)
        if control.outcome is not None:
            return
        outcome = Outcome(ending=Ending.SUPERSEDED, code=1, reason=f"attempt {new} has begun")
        ended = msgspec.structs.replace(control, outcome=outcome, reason=outcome.reason, nonce=secrets.token_hex(8))
        cell = store.compare_and_set(keys.control, cell.revision, encode_over(ended, cell.value, key=keys.control))


def take_over(store: KeyValueStore, keys: Keys, cell: Cell, member: str, reason: str) -> Cell:
    """`control` after this member's attempt to become coordinator in place of the one that `cell` names."""
    control = decode(cell.value, Control, key=keys.control)
    mine = msgspec.structs.replace(
        control, term=control.term + 1, coordinator=member, nonce=secrets.token_hex(8), reason=reason
    )
    return store.compare_and_set(keys.control, cell.revision, encode_over(mine, cell.value, key=keys.control))

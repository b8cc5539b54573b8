"""Claiming a channel: watch the highest claim until `core.claims` admits this term, then make the next one."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from holdfast.channel.beats import clock_s
from holdfast.channel.channel import Channel
from holdfast.core import liveness, publish
from holdfast.core.claims import Admit, Standing, Wait, admit
from holdfast.core.names import beat_path, claim_path
from holdfast.core.records import BeatRecord, ClaimRecord, Term, encode
from holdfast.errors import ConflictError, HoldfastError, OutcomeUnknownError, TimedOutError, UnavailableError
from holdfast.events import EventLog
from holdfast.launched import launched_term

CREATE_TRIES = 5
_LOOKS_PER_LEASE = 40

_own_job: dict[int, str] = {}


def process_term() -> Term:
    """The term of a publisher that was given none: its launcher's, or without one that of a job of the process's own.

    Raises:
        UsageError: code "bad_environment": Holdfast started this process, but its environment was changed since.
    """
    launched = launched_term()
    if launched is not None:
        return launched
    job = _own_job.setdefault(os.getpid(), f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}")
    return Term(job=job, round=0, nonce=secrets.token_hex(8))


def claim_channel(
    channel: Channel,
    state: publish.Publisher,
    term: Term,
    *,
    take_over: bool,
    wait_s: float,
    events: EventLog,
    check_start: Callable[[], None],
) -> publish.Publisher:
    """The publisher once its claim stands, durably.

    Args:
        check_start: makes sure that what the cycle is to start from is still held; called just before each claim.

    Raises: as `core.claims.admit`, and as `check_start`; TimedOutError code "claim_timed_out" after `wait_s` seconds.
    """
    observer = channel.observer()
    watch = liveness.Watch()
    pause_s = max(0.02, min(1.0, channel.lease_s / _LOOKS_PER_LEASE))
    began_s = clock_s()
    said = ""
    while True:
        claims = observer.claims()
        highest = max((claim.cycle for claim in claims), default=0)
        seen = observer.beat(highest)
        watch = liveness.look(watch, {str(highest): seen.token}, clock_s(), gap_s=channel.lease_s / 4)
        watched = watch.watched[str(highest)]
        standing = Standing(
            closed=seen.record is not None and seen.record.closed,
            silent_s=watched.silent_s,
            beaten=watched.beaten,
        )
        decision = admit(term, claims, standing, lease_s=channel.lease_s, take_over=take_over)
        if isinstance(decision, Admit):
            check_start()
            state, effects = publish.step(state, publish.Admitted(decision.cycle))
            state, _ = publish.step(state, _create(channel, term, effects[0]))
            if state.phase is publish.Phase.OPEN:
                events.emit("claimed", decision.reason, cycle=state.cycle, starts_from=state.starts_from)
                return state
            continue
        if clock_s() - began_s >= wait_s:
            raise TimedOutError(
                f"not admitted within {wait_s:g} s: {decision.reason}",
                code="claim_timed_out",
                hint="wait longer, or open with take_over=True, which fences that publisher",
            )
        if not said:
            events.emit("waiting", decision.reason)
            said = decision.reason
        threading.Event().wait(pause_s)


def _create(channel: Channel, term: Term, effect: publish.Effect) -> publish.Event:
    """Make the claim; read back what stands there until that can be told."""
    assert isinstance(effect, publish.CreateClaim)
    starts_from = str(effect.starts_from) if effect.starts_from is not None else None
    record = encode(ClaimRecord(cycle=effect.cycle, term=term, starts_from=starts_from))
    for tried in range(1, CREATE_TRIES + 1):
        try:
            channel.store.create(claim_path(effect.cycle), record)
        except ConflictError:
            return publish.ClaimLost()
        except (OutcomeUnknownError, UnavailableError):  # it may stand, visible and not yet durable
            if tried == CREATE_TRIES:
                _withdraw(channel, effect.cycle, record)
                raise
            continue
        return publish.ClaimMade()
    raise AssertionError("unreachable")


def _withdraw(channel: Channel, cycle: int, claim: bytes) -> None:
    """Close a reign that its claimant gives up, if its claim stands, so that the next claim need not wait a lease."""
    with suppress(HoldfastError):
        if channel.store.read(claim_path(cycle), limit_bytes=len(claim)) == claim:
            channel.store.replace(beat_path(cycle), encode(BeatRecord(cycle=cycle, beat=1, closed=True)))


__all__ = ["Wait", "claim_channel", "process_term"]

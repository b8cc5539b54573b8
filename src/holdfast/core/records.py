"""The small records on storage, as they are written; FORMAT.md shows each one.

Each has one writer. They are read tolerantly (unknown fields ignored, limits on everything) and never believed
further than their own statements: what a consumer's file says binds nobody but that consumer.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from holdfast.core.names import Version, parse_version
from holdfast.errors import IntegrityError, UsageError

FORMAT = 1
RECORD_BYTES_MAX = 4 * 2**20
HOLDS_MAX = 10_000
BOUND_UNKNOWN_S = 90.0


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """Who a publisher is: `job` and `round` from the launcher (or the process's own), `nonce` new for each opening."""

    job: str
    round: int
    nonce: str


class Party(msgspec.Struct, frozen=True, kw_only=True):
    """Where a participant sees the channel from, and how late things may become visible there (seconds)."""

    host: str
    device: str
    bound_s: float = BOUND_UNKNOWN_S


class ClaimRecord(msgspec.Struct, frozen=True, kw_only=True):
    """cycles/000003.json: one publisher's reign begins. Immutable."""

    format: int = FORMAT
    cycle: int
    term: Term
    starts_from: str | None


class BeatRecord(msgspec.Struct, frozen=True, kw_only=True):
    """cycles/000003.beat: that publisher lives while `beat` changes; `closed` once it left in order."""

    format: int = FORMAT
    cycle: int
    beat: int
    closed: bool = False


class ConsumerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """consumers/<id>.<incarnation>.json, written by that consumer alone."""

    format: int = FORMAT
    beat: int
    holds: tuple[str, ...] = ()
    acknowledged: str | None = None
    acknowledged_cycle: int = 0  # the claim that was followed when it was acknowledged
    serving: tuple[str, ...] = ()  # acknowledged and not released; for `status`
    refused: dict[str, str] = {}  # version -> reason
    party: Party
    in_place: bool = True  # loads from the channel itself, not from a copy
    every: bool = False  # takes every version of the lineage; those after `last` wait for it
    last: str | None = None  # what it was given last
    closed: bool = False


class SweeperRecord(msgspec.Struct, frozen=True, kw_only=True):
    """sweepers/<cycle>-<nonce>.json, written by that sweeper alone."""

    format: int = FORMAT
    beat: int
    cycle: int
    tombstones: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    reasons: dict[str, str] = {}  # version -> why it goes
    party: Party
    bound_s: float = 0.0  # the visibility bound that its tombstones wait for, twice
    retention: dict[str, Any] = {}  # what it keeps (holdfast.Retention); for `status`
    closed: bool = False


class ChannelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """channel.json. `visibility_bound_s` is what `holdfast doctor` measured, if it did."""

    format: int = FORMAT
    run: str
    legacy: str = "broadcasts"
    probed: dict[str, Any] = {}
    visibility_bound_s: float | None = None


class _Head(msgspec.Struct):
    format: int


Record = TypeVar("Record", ClaimRecord, BeatRecord, ConsumerRecord, SweeperRecord, ChannelRecord)


def encode(record: msgspec.Struct) -> bytes:
    """The record as JSON with a newline. UsageError beyond the size that readers accept."""
    data = msgspec.json.encode(record) + b"\n"
    if len(data) > RECORD_BYTES_MAX:
        raise UsageError(
            f"a record of {len(data)} bytes is over the limit of {RECORD_BYTES_MAX}",
            code="record_too_large",
            hint="release versions that are no longer needed",
        )
    return data


def decode(data: bytes, kind: type[Record], *, path: str) -> Record:
    """The record at `path`.

    Raises:
        IntegrityError: code "bad_record" (not JSON, wrong types, over limits) or "newer_format".
    """
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.format != FORMAT:
            raise IntegrityError(
                f"{path} has format {head.format}; this Holdfast reads format {FORMAT}",
                code="newer_format",
                hint="upgrade holdfast on this machine",
                path=path,
            )
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: {error}", code="bad_record", path=path) from error


def versions_in(names: tuple[str, ...]) -> frozenset[Version]:
    """The versions among `names`; what is no version's name is ignored."""
    return frozenset(version for name in names[:HOLDS_MAX] if (version := parse_version(name)) is not None)

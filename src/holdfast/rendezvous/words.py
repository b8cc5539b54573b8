"""Words: what an agent's thread tells the main thread to do next."""

from __future__ import annotations

import msgspec

from holdfast.core.member import Member, Seat
from holdfast.core.membership import Control


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """A seat in the committed round: start workers."""

    seat: Seat
    control: Control


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """End with this code."""

    code: int
    reason: str


class Released(msgspec.Struct, frozen=True):
    """All nodes are done."""


class Glance(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent knows now, for metrics.

    Attributes:
        beats: how many it has written; beat_age_s: how long ago the last one (seconds); None: none yet.
        away_s: for how long its store has not answered (seconds); 0: it answers.
        num_spares: how many members could take a seat now; None: another node coordinates.
    """

    state: Member
    seated: bool
    beats: int
    beat_age_s: float | None
    away_s: float
    num_spares: int | None


Word = Round | Left | Released

"""Words: what an agent's thread tells the main thread to do next."""

from __future__ import annotations

import msgspec

from holdfast.core.member import Seat
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


Word = Round | Left | Released

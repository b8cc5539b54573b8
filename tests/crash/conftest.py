"""Time, names and beats by hand, so that equal runs do equal things."""

from __future__ import annotations

import secrets
import time

import pytest

from holdfast.channel.beats import Beater
from holdfast.channel.waiting import Waiter
from tests.crash.hand import Hand


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    """The hand that turns the clock, draws the names and beats; nothing else does while a test has it."""
    hand = Hand()
    monkeypatch.setattr(time, "clock_gettime", lambda _: hand.now_s)
    monkeypatch.setattr(secrets, "token_hex", hand.draw)
    monkeypatch.setattr(Beater, "__init__", lambda beater, *given: hand.remember(beater, given))
    monkeypatch.setattr(Beater, "start", lambda beater, *_: hand.start(beater))
    monkeypatch.setattr(Beater, "stop", lambda beater: hand.stop(beater))
    monkeypatch.setattr(Waiter, "wait", lambda waiter, left_s, **_: hand.wait(left_s))
    return hand

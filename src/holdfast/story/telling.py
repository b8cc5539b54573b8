"""One event file, told: its events become bars, marks and samples, each placed in time.

Wall clocks align the files of different processes and machines; how long something took is said by the writer's own
monotonic clock. So a wall clock that jumps moves what comes after it, and never makes a duration wrong or negative.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import msgspec

from holdfast.events import Event
from holdfast.story.kinds import LOADS, MARK_OF, NODE_STATES, SERVER_STATES, SILENT, TROUBLES

JUMP_S = 2.0
TEXT_CHARACTERS_MAX = 300
NAME_CHARACTERS_MAX = 120
OPEN_MAX = 4096
CLOCK_S_MAX = 1e10
TOOK_S_MAX = 1e7
SERVERS_MAX = 256


class Item(msgspec.Struct, frozen=True):
    """A bar or a mark.

    Attributes:
        kind: of `kinds.KINDS`.
        server: the lane within the process: a server's URL, or "".
        start_s: seconds since 1970, by the writer's wall clock; took_s: by its monotonic clock, 0 for a mark.
        trouble: of `kinds.TROUBLES`; "" if all is well.
        open: it had not ended where the file ends.
    """

    kind: str
    server: str
    start_s: float
    took_s: float
    version: str = ""
    reason: str = ""
    trouble: str = ""
    open: bool = False


class Opened(msgspec.Struct, frozen=True):
    kind: str
    start_s: float
    clock_s: float
    version: str
    reason: str


def clip(value: object, limit: int = TEXT_CHARACTERS_MAX) -> str:
    """`value` as text of at most `limit` characters, all of which can be encoded and shown on one line."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def number(value: object) -> float | None:
    """`value` if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


class FileClock:
    """Places the events of one file on the time line that all files share.

    Attributes:
        jump_s: by how much the wall clock jumped against the monotonic one, at most; 0: it did not.
        num_jumps: how often.
    """

    def __init__(self) -> None:
        self.jump_s = 0.0
        self.num_jumps = 0
        self._offset_s: float | None = None
        self._clock_s = -math.inf

    def place(self, event: Event) -> float | None:
        """Seconds since 1970; None: it has no readable time, and none before it had; or a clock that cannot be."""
        if abs(event.clock_s) > CLOCK_S_MAX:
            return None
        wall_s = _wall(event.time)
        started_anew = event.clock_s < self._clock_s
        self._clock_s = event.clock_s
        if wall_s is None:
            return None if self._offset_s is None or started_anew else event.clock_s + self._offset_s
        offset_s = wall_s - event.clock_s
        if self._offset_s is None or started_anew:
            self._offset_s = offset_s
        elif abs(offset_s - self._offset_s) > JUMP_S:
            if abs(offset_s - self._offset_s) > abs(self.jump_s):
                self.jump_s = offset_s - self._offset_s
            self._offset_s = offset_s
            self.num_jumps += 1
        return event.clock_s + self._offset_s


def _wall(text: str) -> float | None:
    try:
        time = dt.datetime.fromisoformat(text)
        return (time if time.tzinfo is not None else time.replace(tzinfo=dt.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


class Teller:
    """Turns the events of one file, in order, into items. What never ends in the file is told by `finish`."""

    def __init__(self) -> None:
        self._states: dict[str, Opened] = {}  # by server; a node's own under ""
        self._spans: dict[tuple[str, str], Opened] = {}  # (kind, version)
        self._now = (0.0, 0.0)

    def hear(self, event: Event, at_s: float) -> list[Item]:
        """What `event`, which happened at `at_s`, adds."""
        self._now = (at_s, event.clock_s)
        name, version = event.event, clip(event.version or "", NAME_CHARACTERS_MAX)
        items: list[Item] = []
        if name in NODE_STATES or name == "left":
            self._state(items, "", name if name != "left" else "", "", event)
        elif name == "server_state":
            self._server(items, event, version)
        elif name == "server_still" and clip(event.fields.get("server", ""), NAME_CHARACTERS_MAX) not in self._states:
            self._server(items, event, version)  # what it was before stood in a file that is gone
        elif name == "engine_did":
            self._engine(items, event, version)
        elif name in ("given", "taken_over"):
            self._open("hold", version, event.reason)
        elif name in ("released", "failed", "rejected", "refused"):
            self._close(items, "hold", version)
        elif name in ("expired", "superseded_consumer", "lease_lost", "closed"):
            self._close_all(items, "hold")
        elif name == "published" and "took_s" in event.fields:
            took_s = _took_s(event)
            items.append(Item("publishing", "", at_s - took_s, took_s, version))
        elif name == "tombstone":
            self._open("announced", version, event.reason)
        elif name == "swept":
            self._close(items, "announced", version)
        elif name == "store_away":
            self._open("store_away", "", event.reason)
        elif name == "store_back":
            self._close(items, "store_away", "")
        self._mark(items, event, version)
        return items

    def finish(self) -> list[Item]:
        """What was still so where the file ends."""
        items: list[Item] = []
        for server in list(self._states):
            self._end_state(items, server, still=True)
        for kind, version in list(self._spans):
            self._close(items, kind, version, still=True)
        return items

    def _mark(self, items: list[Item], event: Event, version: str) -> None:
        name = event.event
        trouble = name if name in TROUBLES else ""
        if name == "outcome" and event.fields.get("ending") not in ("succeeded", "stopped", None):
            trouble = "bad_outcome"
        if name in MARK_OF:
            kind = MARK_OF[name]
        elif trouble:
            kind = "trouble"
        elif name in SILENT or name in NODE_STATES:
            return
        else:
            kind = "note"
        reason = clip(event.reason) if kind != "note" else clip(f"{name}: {event.reason}")
        if target := event.fields.get("target"):
            reason = clip(f"{clip(target, NAME_CHARACTERS_MAX)}: {reason}")
        server = clip(event.fields["server"], NAME_CHARACTERS_MAX) if "server" in event.fields else ""
        items.append(Item(kind, server if server in self._states else "", self._now[0], 0.0, version, reason, trouble))

    def _server(self, items: list[Item], event: Event, version: str) -> None:
        server = clip(event.fields.get("server", ""), NAME_CHARACTERS_MAX)
        if server not in self._states and len(self._states) >= SERVERS_MAX:
            return
        state = str(event.fields.get("state", ""))
        kind = SERVER_STATES.get(state, "unknown")
        self._state(items, server, "unknown" if kind == "serving" and not version else kind, version, event)
        if kind in ("gone", "quarantined"):
            items.append(Item("trouble", server, self._now[0], 0.0, version, clip(event.reason), f"server_{kind}"))

    def _engine(self, items: list[Item], event: Event, version: str) -> None:
        took_s = _took_s(event)
        action = clip(event.fields.get("action", ""), NAME_CHARACTERS_MAX)
        server = clip(event.fields.get("server", ""), NAME_CHARACTERS_MAX)
        kind = "load" if action in LOADS else "engine"
        server = server if server in self._states else ""
        items.append(Item(kind, server, self._now[0] - took_s, took_s, version, action))

    def _state(self, items: list[Item], server: str, kind: str, version: str, event: Event) -> None:
        self._end_state(items, server, still=False)
        if kind:
            self._states[server] = Opened(kind, *self._now, version, _why(event))

    def _end_state(self, items: list[Item], server: str, *, still: bool) -> None:
        opened = self._states.pop(server, None)
        if opened is not None:
            items.append(self._item(opened, server, still))

    def _open(self, kind: str, version: str, reason: str) -> None:
        if (kind, version) not in self._spans and len(self._spans) < OPEN_MAX:
            self._spans[kind, version] = Opened(kind, *self._now, version, clip(reason))

    def _close(self, items: list[Item], kind: str, version: str, *, still: bool = False) -> None:
        opened = self._spans.pop((kind, version), None)
        if opened is not None:
            items.append(self._item(opened, "", still))

    def _close_all(self, items: list[Item], kind: str) -> None:
        for other, version in list(self._spans):
            if other == kind:
                self._close(items, kind, version)

    def _item(self, opened: Opened, server: str, still: bool) -> Item:
        at_s, clock_s = self._now
        took_s = clock_s - opened.clock_s
        if took_s < 0:  # the machine was started anew, and its clock with it
            took_s = at_s - opened.start_s if 0 < at_s - opened.start_s < TOOK_S_MAX else 0.0
        # By its end: if the wall clock has jumped meanwhile, it was set right.
        return Item(opened.kind, server, at_s - took_s, took_s, opened.version, opened.reason, "", still)


def _took_s(event: Event) -> float:
    return min(max(0.0, number(event.fields.get("took_s")) or 0.0), TOOK_S_MAX)


def _why(event: Event) -> str:
    fields: dict[str, Any] = event.fields
    round_ = number(fields.get("round"))
    return clip(f"round {round_:.0f}: {event.reason}" if round_ and event.reason else event.reason or _round(round_))


def _round(round_: float | None) -> str:
    return f"round {round_:.0f}" if round_ else ""

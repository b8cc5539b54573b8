"""Inference servers as their sync processes proved them, and how far each lags behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from holdfast.core.names import parse_version
from holdfast.events import Event
from holdfast.overview.now import ServerNow
from holdfast.overview.tails import Heard, Tail
from holdfast.overview.versions import Line
from holdfast.story.telling import clip

SILENT_S = 200.0  # a sync process tells every server's state once a minute
FORGOTTEN_S = 24 * 3600.0
GOOD = ("ready", "updating", "unknown")
_STATES = frozenset({"ready", "updating", "lagging", "quarantined", "gone", "unknown"})
_ORDER = ("quarantined", "gone", "lagging", "silent", "unknown", "updating", "ready")


def tell(heard: Heard, line: Line) -> list[ServerNow]:
    """Every server, the worst first: by state, then by how far it is behind."""
    found: dict[tuple[str, str], tuple[Tail, Event]] = {}
    for tail in heard.tails:  # oldest change first: of several processes for one server the last one counts
        if heard.silent_s(tail) <= FORGOTTEN_S:
            found |= {key: (tail, event) for key, event in _said(tail).items()}
    servers = [_server(key, heard.silent_s(tail), event, line) for key, (tail, event) in found.items()]
    return sorted(servers, key=_badness)


def problems(servers: Sequence[ServerNow]) -> list[str]:
    """One line for each bad state."""
    bad = Counter(server.state for server in servers if server.state not in GOOD)
    found = []
    for state in (state for state in _ORDER if state in bad):
        first = next(server for server in servers if server.state == state)
        who = first.server if bad[state] == 1 else f"{bad[state]} servers"
        verb = "is" if bad[state] == 1 else "are"
        found.append(f"{who} {verb} {state}: {first.reason or 'no reason was told'}")
    return found


def _said(tail: Tail) -> dict[tuple[str, str], Event]:
    """The last word on each server; none if the process has left in order."""
    last: dict[tuple[str, str], Event] = {}
    for event in tail.events:
        if event.event in ("server_state", "server_still"):
            last[clip(event.fields.get("server", ""), 200), clip(event.fields.get("adapter", ""), 120)] = event
        elif event.event == "closed" and "sync" in event.fields:
            last.clear()
    return last


def _server(key: tuple[str, str], silent_s: float, event: Event, line: Line) -> ServerNow:
    state = str(event.fields.get("state", ""))
    state = state if state in _STATES else "unknown"
    reason = clip(event.reason)
    if silent_s > SILENT_S:
        reason = f"{event.process} has said nothing for {silent_s:.0f} s; it was {state}"
        state = "silent"
    version = parse_version(event.version) if event.version else None
    versions, steps = line.behind(version) if version is not None else (None, None)
    return ServerNow(
        server=key[0],
        adapter=key[1],
        sync=clip(event.process, 120),
        state=state,
        reason=clip(reason),
        time=clip(event.time, 40),
        version=None if version is None else str(version),
        step=None if version is None else version.step,
        behind_versions=versions,
        behind_steps=steps,
        outside_lineage=version is not None and line.outside(version),
    )


def _badness(server: ServerNow) -> tuple[int, float, str, str]:
    behind = float("inf") if server.behind_steps is None else server.behind_steps
    return _ORDER.index(server.state), -behind, server.server, server.adapter

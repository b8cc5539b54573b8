"""From the ends of all event files to the run as it is now."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

from holdfast.overview import job as jobs
from holdfast.overview import servers, versions
from holdfast.overview.job import moment
from holdfast.overview.now import Anomaly, EventsRead, Measured, RunNow
from holdfast.overview.tails import Heard, Tail
from holdfast.story.bounded import Alike
from holdfast.story.kinds import TROUBLES
from holdfast.story.telling import clip, number

ANOMALIES_MAX = 200
SERIES_MAX = 50
_PERHAPS = frozenset(TROUBLES) | {"server_state", "outcome"}


def tell(heard: Heard, *, newest: str | None = None, present: Iterable[str] = (), now_s: float | None = None) -> RunNow:
    """The run that `heard` tells of.

    Args:
        newest, present: what the channel itself shows: its newest version, and all that are there of its lineage.
        now_s: this machine's time (seconds since 1970): should all agents have died at once, nothing else tells.
    """
    tails = heard.tails
    line = versions.line(tails, newest, present)
    job = jobs.tell(heard)
    found = servers.tell(heard, line)
    return RunNow(
        newest=None if line.newest is None else str(line.newest),
        job=job,
        servers=found,
        measured=_measured(tails),
        anomalies=_anomalies(tails),
        events=EventsRead(
            files=len(tails),
            left_out=heard.left_out,
            bytes=heard.num_bytes,
            last=_iso(tails[-1].changed_s) if tails else None,
        ),
        problems=(jobs.problems(job, jobs.unheard_s(heard, now_s)) if job is not None else [])
        + servers.problems(found),
    )


def _measured(tails: Sequence[Tail]) -> list[Measured]:
    """The last value of every series, whoever measured it."""
    last: dict[str, tuple[float, Measured]] = {}
    for tail in tails:
        mine: set[str] = set()
        for event in reversed(tail.events):
            if event.event != "measured" or len(mine) >= SERIES_MAX:
                continue
            names = [name for name in event.fields if name not in mine and name != "step"]
            at_s = moment(event) if names else 0.0
            step = number(event.fields.get("step"))
            for name in names:
                value = number(event.fields[name])
                if value is None:
                    continue
                mine.add(name)
                if name not in last or last[name][0] <= at_s:
                    last[name] = (at_s, _one(clip(name, 60), value, step, event.process, event.time))
    ordered = sorted(last.values(), key=lambda item: -item[0])[:SERIES_MAX]
    return sorted((measured for _, measured in ordered), key=lambda one: one.name)


def _one(name: str, value: float, step: float | None, process: str, time: str) -> Measured:
    return Measured(
        name=name,
        value=value,
        step=None if step is None else int(step),
        process=clip(process, 120),
        time=clip(time, 40),
    )


def _anomalies(tails: Sequence[Tail]) -> list[Anomaly]:
    """What went wrong, the newest first; from the newest files, should there be very many."""
    alike = Alike(ANOMALIES_MAX)
    for tail in reversed(tails):
        for event in reversed(tail.events):
            if event.event not in _PERHAPS:
                continue
            kind = _trouble(event.event, event.fields.get("ending"), event.fields.get("state"))
            if kind:
                process, version = clip(event.process, 120), clip(event.version or "", 120)
                alike.add(kind, process, moment(event), version, clip(event.reason))
    rows = sorted(alike.rows.items(), key=lambda item: -item[1][1])
    return [
        Anomaly(
            kind=key[0],
            what=TROUBLES[key[0]],
            process=key[1],
            time=_iso(row[1]),
            num=int(row[2]),
            version=alike.texts[key][0],
            reason=alike.texts[key][1],
        )
        for key, row in rows
    ]


def _trouble(event: str, ending: object, state: object) -> str:
    if event == "server_state" and state in ("gone", "quarantined"):
        return f"server_{state}"
    if event == "outcome" and ending not in ("succeeded", "stopped", None):
        return "bad_outcome"
    return event if event in TROUBLES else ""


def _iso(at_s: float) -> str:
    try:
        return dt.datetime.fromtimestamp(at_s, dt.UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return ""

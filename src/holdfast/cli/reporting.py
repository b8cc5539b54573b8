"""`holdfast report` and `holdfast trace`: a run as a page, and as a trace, from its event files."""

from __future__ import annotations

import contextlib
import pathlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, TextIO

import msgspec
from cyclopts import Parameter

from holdfast import __version__
from holdfast.channel.channel import Channel
from holdfast.cli.options import Flag
from holdfast.cli.output import DONE, Out, facts, num_bytes
from holdfast.errors import HoldfastError, UnavailableError, UsageError
from holdfast.eventfiles import find_event_files
from holdfast.story.gather import gather
from holdfast.story.page import page
from holdfast.story.run import Run, Totals
from holdfast.story.trace import write_trace
from holdfast.story.words import headline, lasting


class Failover(msgspec.Struct, frozen=True, kw_only=True):
    """One change of round that something forced. `phases`: seconds of each; `total_s` null: not told."""

    round: int
    reason: str
    phases: dict[str, float]
    total_s: float | None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One measured series: how many values, and the means of its first and last tenth."""

    num: int
    first_tenth: float | None
    last_tenth: float | None


class Reported(msgspec.Struct, frozen=True, kw_only=True):
    """What `holdfast report --json` prints."""

    page: str
    bytes: int
    title: str
    ending: str | None
    code: int | None
    duration_s: float
    rounds: int
    failovers: list[Failover]
    totals: Totals
    measured: dict[str, Measured]
    anomalies: dict[str, int]


class Traced(msgspec.Struct, frozen=True, kw_only=True):
    """What `holdfast trace --json` prints."""

    trace: str
    bytes: int
    files: int


def report(
    place: pathlib.Path,
    /,
    *more: pathlib.Path,
    output: Annotated[pathlib.Path, Parameter(alias="-o")] = pathlib.Path("report.html"),
    title: str = "",
    json: Flag = False,
) -> int:
    """Write a run down as one HTML page: timeline, failovers, curves, anomalies. Works offline; changes nothing else.

    Args:
        place: a channel, a directory of event files, or an event file.
        more: further ones of the same run.
        output: where the page goes; it is replaced as a whole.
        title: what the page is called. Default: the channel's run.
        json: print the numbers as JSON on stdout; errors too.
    """
    out, places = Out(json), [place, *more]
    files = _files(places)
    named = _title(title, places)
    with out.progress("reading events", _num_bytes(files)) as progress:
        run = gather(files, progress)
    with _replacing(output) as file:
        file.write(page(run, named, __version__))
    reported = _reported(run, named, output)
    out.data(reported, lambda screen: screen.print(facts(_rows(run, reported))))
    return DONE


def trace(
    place: pathlib.Path,
    /,
    *more: pathlib.Path,
    output: Annotated[pathlib.Path, Parameter(alias="-o")] = pathlib.Path("trace.json"),
    title: str = "",
    json: Flag = False,
) -> int:
    """Write a run down as a trace for https://ui.perfetto.dev or chrome://tracing. Nothing is left out.

    Args:
        place: a channel, a directory of event files, or an event file.
        more: further ones of the same run.
        output: where the trace goes; it is replaced as a whole.
        title: what the run is called. Default: the channel's run.
        json: print where it is as JSON on stdout; errors too.
    """
    out, places = Out(json), [place, *more]
    files = _files(places)
    named = _title(title, places)
    with out.progress("reading events", _num_bytes(files)) as progress, _replacing(output) as file:
        write_trace(files, file.write, title=named, progress=progress)
    traced = Traced(trace=str(output), bytes=output.stat().st_size, files=len(files))
    rows = [("trace", f"{traced.trace}, {num_bytes(traced.bytes)}"), ("open with", "https://ui.perfetto.dev")]
    out.data(traced, lambda screen: screen.print(facts(rows)))
    return DONE


def _files(places: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    files = find_event_files(places)
    if not files:
        raise UsageError(
            f"no event file in {', '.join(map(str, places))}",
            code="no_events",
            hint="give a channel, or where event files lie; agents write theirs by `holdfast run --events DIR`",
        )
    return files


def _title(given: str, places: Sequence[pathlib.Path]) -> str:
    """What was given, else the run of the first channel, else the first place's name."""
    homes = [place.resolve().parent if place.resolve().name == "events" else place.resolve() for place in places]
    name = given or homes[0].name
    if not given:
        for place in homes:
            with contextlib.suppress(HoldfastError, NotADirectoryError):
                channel = Channel(place, events=False)
                channel.open()
                name = channel.record.run
                break
    return name or "run"


def _num_bytes(files: Sequence[pathlib.Path]) -> int:
    total = 0
    for file in files:
        with contextlib.suppress(OSError):  # gone since: gather says so
            total += file.stat().st_size
    return total


@contextmanager
def _replacing(path: pathlib.Path) -> Iterator[TextIO]:
    """A file that takes the place of `path` when all is written; else nothing is left of it."""
    part = path.with_name(f".{path.name}-{secrets.token_hex(4)}.part")
    try:
        try:
            with part.open("x", encoding="utf-8", errors="replace") as file:
                yield file
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        wrong_place = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError)
        kind: Callable[..., HoldfastError] = UsageError if wrong_place else UnavailableError
        raise kind(
            f"{path}: {error.strerror}", code="cannot_write", hint="say where it may be written by -o", path=str(path)
        ) from error


def _reported(run: Run, title: str, output: pathlib.Path) -> Reported:
    return Reported(
        page=str(output),
        bytes=output.stat().st_size,
        title=title,
        ending=run.outcome[0] if run.outcome else None,
        code=run.outcome[1] if run.outcome else None,
        duration_s=round(run.end_s - run.start_s, 3),
        rounds=len(run.rounds),
        failovers=[
            Failover(
                round=round_.number,
                reason=round_.reason,
                phases={phase.name: round(phase.took_s, 3) for phase in round_.phases},
                total_s=None if round_.total_s is None else round(round_.total_s, 3),
            )
            for round_ in run.failovers
        ],
        totals=run.totals,
        measured={
            series.name: Measured(num=series.num, first_tenth=series.first_tenth, last_tenth=series.last_tenth)
            for series in run.series
        },
        anomalies=run.num_anomalies,
    )


def _rows(run: Run, reported: Reported) -> list[tuple[str, object]]:
    totals = run.totals
    took_s = [failover.total_s for failover in reported.failovers if failover.total_s is not None]
    served = f"{totals.published} published, {totals.served} served, {totals.swept} swept"
    rows: list[tuple[str, object]] = [
        ("run", f"{reported.title}: {headline(run)[1]}, {lasting(reported.duration_s)}"),
        ("versions", f"{served}, {totals.refused} refused"),
    ]
    if run.rounds:
        longest = f", longest {lasting(max(took_s))}" if took_s else ""
        rows.append(("failovers", f"{len(reported.failovers)}{longest}"))
    rows.append(("anomalies", sum(reported.anomalies.values())))
    rows.append(("report", f"{reported.page}, {num_bytes(reported.bytes)}"))
    return rows

"""`holdfast doctor`: what a file system can do, and how late two machines see each other's changes on it."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from holdfast.channel.channel import CHANNEL, Channel
from holdfast.channel.doctor import Diagnosis, examine
from holdfast.channel.probes import BROKEN, SLOW, Probe
from holdfast.channel.visibility import Reader, Visibility, Writer, store_bound
from holdfast.cli.options import Flag
from holdfast.cli.output import DONE, UNHEALTHY, Out, facts, table, text
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {BROKEN: "bold red", SLOW: "yellow"}


def doctor(
    path: pathlib.Path,
    /,
    *,
    write: Flag = False,
    read: Flag = False,
    seconds: float | None = None,
    num_bytes: Annotated[int, Parameter(name="--bytes")] = 256 * 10**6,
    patience: float = 600.0,
    json: Flag = False,
) -> int:
    """Find out what the file system at PATH can do; exit code 3 if something that Holdfast needs is missing.

    With --write on one machine and --read on another, measure how late changes become visible between them, without
    comparing their clocks. If PATH is a channel, the bound is stored in it by the side that writes.

    Args:
        path: a directory; everything happens in a temporary one below it.
        write: make the changes that the other machine looks for.
        read: look for the changes, and measure.
        seconds: the longest time for measuring the speed (default 5), or for --read (default 60).
        num_bytes: the most to write when measuring the speed.
        patience: seconds to wait for the other machine.
        json: print JSON on stdout; errors too.
    """
    if write and read:
        raise UsageError(
            "--write and --read together", code="usage", hint="run --write here, --read on another machine"
        )
    if num_bytes < 1 or (seconds is not None and not seconds > 0):
        raise UsageError("--bytes and --seconds must be above 0", code="usage")
    out = Out(json)
    if write:
        if (path / CHANNEL).exists():
            Channel(path).open()  # a channel that cannot be opened is told before an hour was spent on measuring
        found = store_bound(Writer(path, patience_s=patience, say=out.say).run())
    elif read:
        found = Reader(path, seconds=seconds or 60.0, patience_s=patience, say=out.say).run()
    else:
        with out.waiting("examining"):
            diagnosis = examine(path, num_bytes=num_bytes, seconds=seconds or 5.0)
        out.data(diagnosis, lambda screen: _draw(screen, diagnosis))
        return DONE if diagnosis.healthy else UNHEALTHY
    out.data(found, lambda screen: _draw_visibility(screen, found))
    return DONE


def _draw(screen: Console, diagnosis: Diagnosis) -> None:
    made = table("probe", "verdict", "found", fixed=("probe", "verdict"))
    for probe in diagnosis.probes:
        style = _STYLES.get(probe.verdict, "")
        made.add_row(text(probe.name), text(probe.verdict, style), text(probe.found))
        for line in _consequences(probe):
            made.add_row(text(""), text(""), text(line, style))
    screen.print(made)
    verdict = "a channel can work here" if diagnosis.healthy else "a channel CANNOT work here"
    screen.print(text(f"\n{diagnosis.path}: {verdict}".strip(), "" if diagnosis.healthy else "bold red"))


def _consequences(probe: Probe) -> list[str]:
    return [f"→ {line}" for line in (probe.meaning, probe.todo) if line]


def _draw_visibility(screen: Console, found: Visibility) -> None:
    made = table("seen late by at most", "rounds", "median", "largest", right=("rounds", "median", "largest"))
    for one in found.ways:
        made.add_row(text(one.way), text(one.rounds), text(f"{one.median_s:.3f} s"), text(f"{one.largest_s:.3f} s"))
    screen.print(made)
    rows: list[tuple[str, object]] = [("between", f"{found.writer_host} and {found.reader_host}")]
    if found.bound_s is None:
        rows.append(("bound", "none: both ends are on one mount, which says nothing of other machines"))
    else:
        rows.append(("bound", f"{found.bound_s:g} s: {found.safety_factor:g} times the largest, 1 s at least"))
    if found.stored:
        rows.append(("stored", f"in the channel, whose bound is {found.stored_bound_s:g} s now"))
    elif found.bound_s is not None and found.role == "read":
        rows.append(("stored", "by the side that writes, if this is a channel"))
    elif found.bound_s is not None:
        rows.append(("stored", "no: there is no channel here; give it as Channel(…, visibility_bound_s=…)"))
    screen.print(facts(rows))

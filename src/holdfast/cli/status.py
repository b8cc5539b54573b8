"""`holdfast status`: one screen for a run: its job, its servers, its channel; what goes next, and why."""

from __future__ import annotations

import pathlib
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from holdfast.channel.status import Status, StatusReader
from holdfast.cli.options import COMMON, Common, Flag
from holdfast.cli.output import DONE, UNHEALTHY, Out, console
from holdfast.errors import UnavailableError, UsageError
from holdfast.overview import fold
from holdfast.overview.now import RunNow
from holdfast.overview.tails import Heard, TailReader

if TYPE_CHECKING:
    from rich.console import Console


def status(
    channel: pathlib.Path | None = None,
    /,
    *,
    events: Annotated[list[pathlib.Path] | None, Parameter(negative="")] = None,
    watch: Flag = False,
    every: float = 1.0,
    watch_for: Annotated[float, Parameter(name="--for")] = 0.0,
    everything: Annotated[bool, Parameter(name="--all", negative="", show_default=False)] = False,
    common: Common = COMMON,
) -> int:
    """Say how a run is: its job and servers, who holds what, what goes next, and why the rest stays. Changes nothing.

    Job and servers are told by the event files in the channel, and in --events; of each the end is read. One look
    cannot tell who of a channel is alive: that takes some beats. Use --for or --watch. Exit code 3 if something needs a
    person.

    Args:
        channel: the channel's directory; without it, only what event files tell.
        events: more event files, or directories of them; may be repeated.
        watch: look again and again until Ctrl-C; with --json one line of JSON for each look.
        every: seconds between two looks.
        watch_for: watch for this many seconds, then print once.
        everything: print all there is, however long.
    """
    if not every > 0:
        raise UsageError(f"--every {every:g} is not above 0", code="usage", hint="give seconds, such as 1")
    out = Out(common.json)
    looker = Looker(out, common, channel, events or [])
    if watch:
        _watch(out, looker, every, everything)
    now = looker.look()
    deadline_s = time.monotonic() + watch_for
    with out.waiting(f"watching for {watch_for:g} s") if watch_for > 0 else nullcontext():
        while (left_s := deadline_s - time.monotonic()) > 0:
            threading.Event().wait(min(every, left_s))
            now = looker.look()
    _show(out, now, everything)
    return UNHEALTHY if now.problems else DONE


class Look(msgspec.Struct, frozen=True):
    """One look: at the channel, if there is one, and at the ends of the event files."""

    channel: Status | None
    run: RunNow

    @property
    def problems(self) -> list[str]:
        return self.run.problems + (self.channel.problems if self.channel is not None else [])

    def data(self) -> dict[str, Any]:
        """As --json prints it; docs/cli.md says what each field means."""
        shown: dict[str, Any] = {} if self.channel is None else msgspec.to_builtins(self.channel)
        return {**shown, **msgspec.to_builtins(self.run), "problems": self.problems}


class Looker:
    """Looks again and again. UsageError: there is nothing to look at."""

    def __init__(self, out: Out, common: Common, channel: pathlib.Path | None, events: Sequence[pathlib.Path]) -> None:
        if channel is None and not events:
            raise UsageError(
                "there is nothing to look at", code="usage", hint="give a channel's directory, or --events"
            )
        self._reader = StatusReader(common.channel(channel)) if channel is not None else None
        self._out = out
        self._tails = TailReader(events) if events else None
        place = channel if common.claims is None else common.claims
        self._own = TailReader([place]) if place is not None and channel is not None else None

    def look(self) -> Look:
        """Raises UnavailableError where the storage fails: look again."""
        channel = self._reader.look() if self._reader is not None else None
        heard = self._heard()
        if channel is None:
            return Look(None, fold.tell(heard, now_s=time.time()))
        present = [row.version for row in channel.versions if row.in_lineage]
        return Look(channel, fold.tell(heard, newest=channel.newest, present=present, now_s=time.time()))

    def _heard(self) -> Heard:
        found = [self._tails.look()] if self._tails is not None else []
        if self._own is not None:
            try:
                found.append(self._own.look())
            except UsageError as error:  # whoever may see the channel need not be allowed to see all of it
                self._own = None
                self._out.say(f"the channel's event files are left out: {error}")
        tails = {tail.path: tail for heard in found for tail in heard.tails}
        return Heard(
            sorted(tails.values(), key=lambda tail: tail.changed_s),
            sum(heard.num_bytes for heard in found),
            sum(heard.left_out for heard in found),
        )


def _show(out: Out, now: Look, everything: bool) -> None:
    out.data(now.data() if out.as_json else None, lambda screen: _draw(screen, now, everything))


def _draw(screen: Console, now: Look, everything: bool) -> None:
    from holdfast.cli.screen import draw

    screen.print(draw(screen, now.channel, now.run, now.problems, everything=everything))


def _watch(out: Out, looker: Looker, every_s: float, everything: bool) -> None:
    """Until Ctrl-C. A storage that is away for a while is no reason to stop."""
    if out.as_json or not sys.stdout.isatty():
        while True:
            now = _try_look(out, looker)
            if now is not None:
                _show(out, now, everything)
            threading.Event().wait(every_s)
    from rich.live import Live

    from holdfast.cli.screen import draw

    screen = console()
    with Live(console=screen, auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        while True:
            now = _try_look(out, looker)
            if now is not None:
                live.update(draw(screen, now.channel, now.run, now.problems, everything=everything), refresh=True)
            threading.Event().wait(every_s)


def _try_look(out: Out, looker: Looker) -> Look | None:
    try:
        return looker.look()
    except UnavailableError as error:
        out.say(f"waiting: {error}")
        return None

"""`holdfast status`: who publishes, serves, holds and sweeps; which version goes next and why the rest stays."""

from __future__ import annotations

import pathlib
import sys
import threading
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from holdfast.channel.status import ConsumerStatus, Status, StatusReader, retention_from
from holdfast.cli.options import COMMON, Common, Flag
from holdfast.cli.output import DONE, UNHEALTHY, Out, console, facts, num_bytes, table, text
from holdfast.core.names import parse_version
from holdfast.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

VERSIONS_SHOWN = 20


def status(
    channel: pathlib.Path,
    /,
    *,
    watch: Flag = False,
    every: float = 1.0,
    watch_for: Annotated[float, Parameter(name="--for")] = 0.0,
    all_versions: Annotated[bool, Parameter(name="--all", negative="", show_default=False)] = False,
    common: Common = COMMON,
) -> int:
    """Say who serves and holds what, what goes next, and why the rest stays. Changes nothing.

    One look cannot tell who is alive: that takes some beats. Use --for or --watch. Exit code 3 if something needs a
    person: a file that cannot be read, a consumer that refuses the newest version or was taken for dead.

    Args:
        channel: the channel's directory.
        watch: look again and again until Ctrl-C; with --json one line of JSON for each look.
        every: seconds between two looks.
        watch_for: watch for this many seconds, then print once.
        all_versions: print all versions, not only the newest.
    """
    if not every > 0:
        raise UsageError(f"--every {every:g} is not above 0", code="usage", hint="give seconds, such as 1")
    reader = StatusReader(common.channel(channel))
    out = Out(common.json)
    if watch:
        _watch(out, reader, every, all_versions)
    now = reader.look()
    deadline_s = time.monotonic() + watch_for
    with out.waiting(f"watching for {watch_for:g} s") if watch_for > 0 else nullcontext():
        while (left_s := deadline_s - time.monotonic()) > 0:
            threading.Event().wait(min(every, left_s))
            now = reader.look()
    out.data(now, lambda screen: screen.print(draw(now, all_versions)))
    return UNHEALTHY if now.problems else DONE


def _watch(out: Out, reader: StatusReader, every_s: float, all_versions: bool) -> None:
    """Until Ctrl-C. A storage that is away for a while is no reason to stop."""
    if out.as_json or not sys.stdout.isatty():
        while True:
            now = _try_look(out, reader)
            if now is not None:
                out.data(now, lambda screen, now=now: screen.print(draw(now, all_versions)))  # type: ignore[misc]
            threading.Event().wait(every_s)
    from rich.live import Live

    with Live(console=console(), auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        while True:
            now = _try_look(out, reader)
            if now is not None:
                live.update(draw(now, all_versions), refresh=True)
            threading.Event().wait(every_s)


def _try_look(out: Out, reader: StatusReader) -> Status | None:
    try:
        return reader.look()
    except UnavailableError as error:
        out.say(f"waiting: {error}")
        return None


def draw(now: Status, all_versions: bool = False) -> Group:
    """The status as people read it; fits 80 columns."""
    from rich.console import Group

    parts: list[RenderableType] = [facts(_head(now))]
    parts += [text(f"! {problem}", "bold red") for problem in now.problems]
    parts += ["", _consumers(now)] if now.consumers else ["", text("no consumer has registered")]
    if now.readers:
        parts += ["", _readers(now)]
    if now.versions:
        parts += ["", _versions(now, all_versions)]
    return Group(*parts)


def _head(now: Status) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("channel", f"{now.run}, {now.channel}")]
    if now.publisher is None:
        rows.append(("cycle", "nobody has claimed the channel yet"))
    else:
        who = now.publisher
        job = "its claim cannot be read" if who.job is None else f"job {who.job}, round {who.round}"
        rows.append(("cycle", f"{who.cycle}: {job}"))
        rows.append(("starts from", who.starts_from or "nothing"))
        rows.append(("publisher", who.life.text))
    rows.append(("newest", _with_step(now.newest) if now.newest else "nothing is published in this lineage"))
    bound = now.visibility_bound_s
    rows.append(("visibility", "not measured: 90 s between machines" if bound is None else f"{bound:g} s, measured"))
    rows += [("sweeper", f"{sweeper.sweeper}: {sweeper.life.text}") for sweeper in now.sweepers]
    if not now.sweepers:
        rows.append(("sweeper", "none: nothing is swept"))
    rows.append(("retention", _retention(now)))
    return rows


def _retention(now: Status) -> str:
    policy = retention_from(now.retention)
    assert policy is not None, "the status gives a whole one"
    words = [f"{policy.keep_recent} newest"]
    words += [f"every {policy.keep_every} steps"] if policy.keep_every else []
    words += [f"younger than {policy.min_age_s:g} s"] if policy.min_age_s else []
    words += [f"at most {num_bytes(policy.max_bytes)}"] if policy.max_bytes else []
    return ", ".join(words) + (
        f" (sweeper {now.retention_of})" if now.retention_of else " (the default: no sweeper says)"
    )


def _consumers(now: Status) -> RenderableType:
    made = table("consumer", "serves", "behind", "holds", "state", right=("holds",))
    for one in now.consumers:
        style = "dim" if one.life.state in ("closed", "silent") else ""
        made.add_row(
            *(text(cell, style) for cell in (one.name, _serves(one), _behind(one), len(one.holds), _state(one)))
        )
        for version, reason in one.refused.items():
            made.add_row(text(""), text("refuses", "red"), text(_short(version)), text(""), text(reason, "red"))
    return made


def _serves(one: ConsumerStatus) -> str:
    if one.serving:
        return ", ".join(_short(version) for version in one.serving)
    return f"was {_short(one.acknowledged)}" if one.acknowledged else "nothing yet"


def _behind(one: ConsumerStatus) -> str:
    if one.outside_lineage:
        return "outside the lineage"
    if one.behind_versions is None:
        return ""
    return f"{one.behind_versions} ({one.behind_steps} steps)" if one.behind_versions else "up to date"


def _state(one: ConsumerStatus) -> str:
    words = [one.life.text]
    words += [f"expired by {', '.join(one.expired_by)}"] if one.expired_by else []
    words += [f"not seen yet by {', '.join(one.unseen_by)}"] if one.unseen_by else []
    words += [] if one.in_place else ["works on a copy"]
    return "; ".join(words)


def _readers(now: Status) -> RenderableType:
    made = table("older reader", "loaded", "state")
    for one in now.readers:
        state = "unprotected: only min_age keeps it" if one.version else "unprotected: its version is gone"
        made.add_row(text(one.file), text(f"step {one.step}"), text(state, "yellow"))
    return made


def _versions(now: Status, all_versions: bool) -> RenderableType:
    from rich.console import Group

    made = table("version", "next", "reason", fixed=("version", "next"))
    rows = now.versions if all_versions else now.versions[:VERSIONS_SHOWN]
    for row in rows:
        word = "announced" if row.tombstoned_by else "stays" if row.stays else "goes"
        style = "" if row.stays and row.in_lineage else "dim"
        holders = [one.name for one in now.consumers if row.version in one.holds]
        reason = row.reason
        if holders and reason.startswith("held by"):  # the names without their incarnations: shorter, and told above
            reason = f"held by {', '.join(holders)}"
        made.add_row(text(row.version, style), text(word, style if word == "stays" else "yellow"), text(reason, style))
    left = len(now.versions) - len(rows)
    if not left:
        return made
    goes = sum(not row.stays for row in now.versions[VERSIONS_SHOWN:])
    return Group(made, text(f"… and {left} older ones, {goes} of which go next (--all lists them)", "dim"))


def _short(version: str) -> str:
    """A version for a narrow column: cycle and step tell people more than the name does."""
    parsed = parse_version(version)
    return version if parsed is None else f"c{parsed.cycle} step {parsed.step}"


def _with_step(version: str) -> str:
    parsed = parse_version(version)
    return version if parsed is None else f"{version}, step {parsed.step}"

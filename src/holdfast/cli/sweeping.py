"""`holdfast sweep`: one pass of a sweeper, by hand."""

from __future__ import annotations

import pathlib
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from holdfast.channel.channel import Channel
from holdfast.channel.status import survey
from holdfast.channel.sweeper import Sweeper, Swept
from holdfast.cli.options import COMMON, Common, Flag
from holdfast.cli.output import DONE, Out, table, text
from holdfast.cli.schema import Judged, SweepDone
from holdfast.core.bounds import bound_s, settle_s
from holdfast.core.retention import Retention
from holdfast.errors import ConflictError, FencedError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

TICK_S = 0.5
SETTLE_TOLD_S = 2.0
# Every step is a multiple of 1: no version of the lineage goes.
KEEP_LINEAGE = Retention(keep_every=1)


def sweep(
    channel: pathlib.Path,
    /,
    *,
    dry_run: Flag = False,
    keep_recent: int | None = None,
    keep_every: int | None = None,
    min_age: float = 0.0,
    thorough: Flag = False,
    common: Common = COMMON,
) -> int:
    """Delete what nobody needs, once. Exit code 4 if another sweeper is at work.

    Without --keep-recent or --keep-every every version of the lineage stays: only versions outside it, and what
    crashes left behind, go. What somebody holds stays always.

    Args:
        channel: the channel's directory.
        dry_run: only say what would go, and why the rest stays.
        keep_recent: keep this many newest versions of the lineage.
        keep_every: keep the versions of the lineage whose step is a multiple of this; with it alone, also the 2 newest.
        min_age: delete nothing that is younger than this many seconds. A version's age is how long this command has
            watched it, so it takes as long.
        thorough: watch until the dead are told from the living (two leases and a little, where anybody died): what
            dead consumers hold goes too, and a dead sweeper is in nobody's way.
    """
    policy = _policy(keep_recent, keep_every, min_age)
    opened = common.channel(channel)
    out = Out(common.json)
    if keep_recent is None and keep_every is None:
        _refuse_empty_lineage(opened)
        out.say("every version of the lineage stays: neither --keep-recent nor --keep-every was given")
    wait_s = settle_s(bound_s([opened.party(), *survey(opened).parties()], local=opened.local))
    if wait_s > SETTLE_TOLD_S and not dry_run:
        out.say(
            f"what goes is announced for {wait_s:g} s first: two visibility bounds (`holdfast doctor` measures them)"
        )
    with opened.sweeper(policy) as sweeper:
        done = _plan(opened, sweeper) if dry_run else _sweep(out, opened, sweeper, min_age, thorough)
    out.data(done, lambda screen: _draw(screen, done))
    return DONE


def _policy(keep_recent: int | None, keep_every: int | None, min_age_s: float) -> Retention:
    if keep_recent is None and keep_every is None:
        return msgspec.structs.replace(KEEP_LINEAGE, min_age_s=min_age_s)
    recent = keep_recent if keep_recent is not None else Retention().keep_recent
    return Retention(keep_recent=recent, keep_every=keep_every, min_age_s=min_age_s)


def _refuse_empty_lineage(channel: Channel) -> None:
    """A claim that started from nothing and has published nothing makes every version one outside the lineage."""
    seen = survey(channel)
    if seen.versions and seen.lineage.readable and seen.newest is None:
        raise UsageError(
            f"cycle {seen.lineage.cycle} has published nothing yet: all {len(seen.versions)} versions are outside its "
            "lineage and would go",
            code="empty_lineage",
            hint="wait for its first version; or give --keep-recent 1 if they may go, and pin what shall stay",
            cycle=seen.lineage.cycle,
        )


def _plan(channel: Channel, sweeper: Sweeper) -> SweepDone:
    verdicts = sorted(sweeper.plan().items())
    return SweepDone(
        channel=channel.name,
        dry_run=True,
        retention=msgspec.to_builtins(sweeper.retention),
        removed=[Judged(version=name, reason=verdict.reason) for name, verdict in verdicts if not verdict.stays],
        stays=[Judged(version=name, reason=verdict.reason) for name, verdict in verdicts if verdict.stays],
        leftovers=[],
    )


def _sweep(out: Out, channel: Channel, sweeper: Sweeper, min_age_s: float, thorough: bool) -> SweepDone:
    """One pass; or, with an age to be watched, pass after pass until the first look was that long ago, and one more."""
    reasons: dict[str, str] = {}
    removed: set[str] = set()
    leftovers: set[str] = set()

    def keep(swept: Swept) -> None:
        reasons.update(swept.reasons)
        removed.update(swept.removed)
        leftovers.update(swept.garbage)
        if swept.standing_by:
            raise ConflictError(
                f"nothing was swept: {swept.standing_by}",
                code="sweeper_at_work",
                hint="see `holdfast status CHANNEL`; if that sweeper is dead, --thorough finds out",
            )
        if swept.fenced_by:
            raise FencedError(
                f"cycle {swept.fenced_by} was claimed while this was sweeping",
                code="fenced",
                hint="what was removed is removed; sweep again for the rest",
                removed=sorted(removed),
            )

    with out.waiting("sweeping"):
        keep(sweeper.sweep(thorough=thorough))
        since_s = time.monotonic()
        while (left_s := since_s + min_age_s - time.monotonic()) > 0:
            threading.Event().wait(min(TICK_S, left_s))
            keep(sweeper.sweep())
        if min_age_s > 0:
            keep(sweeper.sweep())
    return SweepDone(
        channel=channel.name,
        dry_run=False,
        retention=msgspec.to_builtins(sweeper.retention),
        removed=[Judged(version=name, reason=reasons.get(name, "")) for name in sorted(removed)],
        stays=[Judged(version=name, reason=reason) for name, reason in sorted(reasons.items()) if name not in removed],
        leftovers=sorted(leftovers),
    )


def _draw(screen: Console, done: SweepDone) -> None:
    made = table("version", "would" if done.dry_run else "result", "reason", fixed=("version", "would", "result"))
    for row in reversed(done.stays):
        made.add_row(text(row.version), text("stay" if done.dry_run else "stays"), text(row.reason))
    for row in reversed(done.removed):
        made.add_row(text(row.version), text("go" if done.dry_run else "removed", "bold"), text(row.reason))
    screen.print(made if made.row_count else text("no versions"))
    if done.leftovers:
        screen.print(text(f"{len(done.leftovers)} leftovers of crashes removed"))

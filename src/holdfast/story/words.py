"""Times, sizes and the headline, in words."""

from __future__ import annotations

import datetime as dt
import statistics

import msgspec

from holdfast.story.run import Run, Series

ENDINGS = {
    "succeeded": ("good", "succeeded"),
    "failed": ("bad", "failed"),
    "stopped": ("open", "stopped"),
    "superseded": ("open", "superseded"),
}


class Tile(msgspec.Struct, frozen=True, kw_only=True):
    """One number of the headline. `before`: what it was at first."""

    name: str
    value: str
    more: str = ""
    before: str = ""
    bad: bool = False


def count(number: int) -> str:
    """12 345 with thin spaces."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def plural(number: int, one: str, many: str) -> str:
    return f"{count(number)} {one if number == 1 else many}"


def lasting(seconds: float) -> str:
    """How long: 4 ms, 1.38 s, 2 min 5 s, 3 h 20 min."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def elapsed(seconds: float) -> str:
    """Since the run began: 0:04.2, 12:05.0, 1:02:03."""
    sign, seconds = ("−", -seconds) if seconds < -0.05 else ("", abs(seconds))
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    if minutes < 60:
        return f"{sign}{minutes}:{rest // 10:02d}.{rest % 10}"
    return f"{sign}{minutes // 60}:{minutes % 60:02d}:{rest // 10:02d}"


def day(at_s: float) -> str:
    return f"{dt.datetime.fromtimestamp(at_s, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def days(run: Run) -> str:
    """From when to when."""
    first, last = (dt.datetime.fromtimestamp(at_s, dt.UTC) for at_s in (run.start_s, run.end_s))
    same = first.date() == last.date()
    return f"{first:%-d %B %Y, %H:%M:%S} – {last:{'%H:%M:%S' if same else '%-d %B, %H:%M:%S'}} UTC"


def size(num_bytes: int) -> str:
    """1.0 kB, 14.2 GB (powers of 1000)."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def figure(value: float) -> str:
    """Three digits that count."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.1e}"
    if abs(value) >= 1000:
        return count(round(value))
    return f"{float(f'{value:.3g}'):g}"


def _two(value: float) -> str:
    """A value that stands large beside another: 0.80, 12.3, 1.2e+06."""
    return f"{value:.2f}" if abs(value) < 10 else figure(value)


def headline(run: Run) -> tuple[str, str, str]:
    """(good, bad or open; how it ended; why)."""
    if run.outcome is not None:
        ending, code, reason = run.outcome
        mood, word = ENDINGS.get(ending, ("open", ending))
        return mood, f"{word}, exit code {code}" if mood == "bad" else word, reason
    if not run.lanes:
        return "open", "no events", ""
    if not run.rounds:
        return "open", "no job: only a channel's events", ""
    return "open", "no outcome told", "It is still running, or its agents ended without a word."


def tiles(run: Run) -> list[Tile]:
    """The numbers worth a glance; those that nobody measured are left out."""
    totals, found = run.totals, []
    found.append(
        Tile(name="Published", value=count(totals.published), more=f"versions, {size(totals.published_bytes)}")
    )
    served = f"{plural(totals.loads, 'load', 'loads')} into servers" if totals.loads else "versions, acknowledged"
    found.append(Tile(name="Served", value=count(totals.served), more=served))
    found.append(Tile(name="Swept", value=count(totals.swept), more="versions nobody needed"))
    more = "wrong bytes, never loaded" if totals.refused else "no wrong bytes"
    found.append(Tile(name="Refused", value=count(totals.refused), more=more, bad=totals.refused > 0))
    if totals.serve_s is not None:
        found.append(Tile(name="To first server", value=lasting(totals.serve_s), more="from published, median"))
    if run.rounds:
        found.append(_failovers(run))
    if totals.answered is not None or totals.failed is not None:
        failed = totals.failed or 0
        retried = f"{count(totals.retried)} retried, " if totals.retried else ""
        more = f"answered, {retried}{count(failed)} failed"
        found.append(Tile(name="Requests", value=count(totals.answered or 0), more=more, bad=failed > 0))
    named = {series.name: series for series in run.series}
    if "reward" in named:
        found.append(_tenths("Reward", named["reward"], named.get("control_reward")))
    return found


def _failovers(run: Run) -> Tile:
    took_s = [round_.total_s for round_ in run.failovers if round_.total_s is not None]
    more = f"{plural(len(run.rounds), 'round', 'rounds')} in all"
    if len(took_s) == 1:
        more = f"took {lasting(took_s[0])}"
    elif took_s:
        more = f"median {lasting(statistics.median(took_s))}, longest {lasting(max(took_s))}"
    return Tile(name="Failovers", value=count(len(run.failovers)), more=more)


def _tenths(name: str, series: Series, control: Series | None) -> Tile:
    more = "first → last tenth"
    if control is not None and control.first_tenth is not None and control.last_tenth is not None:
        more += f"; control {_two(control.first_tenth)} → {_two(control.last_tenth)}"
    first, last = series.first_tenth, series.last_tenth
    if first is None or last is None:
        return Tile(name=name, value="–", more=more)
    return Tile(name=name, before=_two(first), value=_two(last), more=more)

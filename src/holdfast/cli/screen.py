"""A run on one screen: as many lines as the terminal has, the worst first, what does not fit as a count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from holdfast.channel.status import ConsumerStatus, Status, VersionStatus, retention_from
from holdfast.cli.output import facts, num_bytes, table, text
from holdfast.core.names import parse_version
from holdfast.overview.job import SILENT_S
from holdfast.overview.now import Anomaly, Failover, JobNow, Measured, NodeNow, RunNow, ServerNow

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType

PIPE_LINES = 70  # where there is no terminal
ROWS_MAX = 20
ROWS_LEAST = 2
PROBLEMS_SHOWN = 4
VALUE_CHARACTERS = 150  # of a fact: two lines of a narrow terminal
NAME_CHARACTERS = 24
SERIES_FIRST = ("reward", "staleness", "loss")
SERIES_SHOWN = 5
WELL = ("running", "parked", "ready", "done", "left")
COUNTS = ("answered", "failed")  # of requests, since the line before: no measure of now


class Part(NamedTuple):
    """A table: how many rows there are, and what it is with the first `n` of them."""

    num_rows: int
    draw: Callable[[int], RenderableType]


def draw(
    screen: Console, channel: Status | None, run: RunNow, problems: Sequence[str], *, everything: bool = False
) -> Group:
    """The run as people read it; fits 80 columns, and the terminal's height where that is possible."""
    from rich.console import Group

    cut = not everything
    shown = problems[:PROBLEMS_SHOWN] if cut else problems
    top: list[RenderableType] = [facts([(name, _cut(value, cut)) for name, value in _head(channel, run)])]
    top += [text(_cut(f"! {problem}", cut), "bold red") for problem in shown]
    if len(shown) < len(problems):
        top.append(text(f"! and {len(problems) - len(shown)} more (--all lists them)", "bold red"))
    parts = _parts(channel, run, cut)
    if everything:
        sizes = [part.num_rows for part in parts]
    else:
        lines = (screen.height if screen.is_terminal else PIPE_LINES) - 1
        used = len(screen.render_lines(Group(*top), pad=False))
        sizes = shares(lines - used - 3 * len(parts), [min(part.num_rows, ROWS_MAX) for part in parts])
    for part, size in zip(parts, sizes, strict=True):
        top += ["", part.draw(size)]
    return Group(*top)


def shares(lines: int, wants: Sequence[int]) -> list[int]:
    """How many rows each table gets: all that it wants if there is room, else as much as the others, two at least."""
    given = [min(want, ROWS_LEAST) for want in wants]
    left = lines - sum(given)
    while left > 0 and given != list(wants):
        for place, want in enumerate(wants):
            if given[place] < want and left > 0:
                given[place] += 1
                left -= 1
    return given


def _parts(channel: Status | None, run: RunNow, cut: bool) -> list[Part]:
    parts = []
    nodes = _nodes_to_show(run.job, cut) if run.job is not None else []
    if nodes:
        parts.append(Part(len(nodes), lambda size: _node_table(nodes, size, cut)))
    if run.servers:
        parts.append(Part(len(run.servers), lambda size: _servers(run.servers, size, cut)))
    if channel is not None and channel.consumers:
        consumers = _worst_first(channel)
        parts.append(Part(len(consumers), lambda size: _consumers(consumers, size, cut)))
    if channel is not None and channel.readers:
        readers = channel.readers
        parts.append(Part(len(readers), lambda size: _readers(channel, size)))
    if channel is not None and channel.versions:
        parts.append(Part(len(channel.versions), lambda size: _versions(channel, size, cut)))
    if run.anomalies:
        parts.append(Part(len(run.anomalies), lambda size: _anomalies(run.anomalies, size, cut)))
    return parts


# The head


def _head(channel: Status | None, run: RunNow) -> list[tuple[str, str]]:
    rows = _job(run.job) if run.job is not None else []
    if len(run.servers) > 1:
        rows.append(("servers", _all_servers(run.servers)))
    if run.measured:
        rows.append(("measured", _measured(run.measured)))
    if channel is not None:
        rows += _channel(channel)
    elif run.newest is not None:
        rows.append(("newest", _with_step(run.newest)))
    if channel is None and not run.events.files:
        rows.append(("events", "no event file is there (yet)"))
    if run.events.left_out:
        rows.append(("events", f"{run.events.left_out} older files were not read"))
    return rows


def _job(job: JobNow) -> list[tuple[str, str]]:
    name = f"{job.run}, attempt {job.attempt}: " if job.run else ""
    when = f" since {_clock(job.since)}" if job.since else ""
    why = job.reason.removeprefix(f"round {job.round}: ")
    rows = [("job", f"{name}round {job.round}{when}: {why}" if job.round else f"{name}no round yet")]
    if job.outcome is not None:
        code = "" if job.outcome.code is None else f", exit code {job.outcome.code}"
        rows.append(("outcome", f"{job.outcome.ending}{code}: {job.outcome.reason}"))
    else:
        rows.append(("nodes", _nodes(job)))
    if job.waiting:
        rows.append(("now", job.waiting))
    if job.last_failover is not None:
        rows.append(("failover", _failover(job.last_failover, job.failovers)))
    return rows


def _nodes(job: JobNow) -> str:
    others = {state: count for state, count in job.states.items() if state not in ("running", "parked", "ready")}
    words = [f"{job.running} of {job.seats} train", f"{job.spares} spare{'' if job.spares == 1 else 's'}"]
    words += [f"{count} {state}" for state, count in sorted(others.items())]
    if len(job.nodes) <= 6:
        seats = [f"{node.node} {node.group_rank}" for node in job.nodes if node.group_rank is not None]
        spare = [f"{node.node} spare" for node in job.nodes if node.spare]
        words.append(f"({', '.join(seats + spare)})")
        return ", ".join(words[:-1]) + f" {words[-1]}"
    return ", ".join(words)


def _failover(last: Failover, count: int) -> str:
    more = f" (and {len(last.replaced) - 1} more)" if len(last.replaced) > 1 else ""
    member, why = next(iter(last.replaced.items()))
    why = why if member in why else f"{member}: {why}"
    times = "under way"
    if last.total_s is not None:
        noticed = f"noticed {last.noticed_s:.1f}, " if last.noticed_s else ""
        times = f"{last.total_s:.1f} s ({noticed}stopped {last.stopped_s:.1f}, started {last.started_s:.1f})"
    return f"{times}: {why}{more}; {count} so far"


def _all_servers(servers: Sequence[ServerNow]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in Counter(one.state for one in servers).items())
    late = max((one.behind_steps for one in servers if one.behind_steps), default=0)
    return f"{len(servers)}: {states}; {f'the slowest is {late} steps behind' if late else 'none is behind'}"


def _measured(measured: Sequence[Measured]) -> str:
    known = {one.name: one for one in measured if one.name not in COUNTS}
    names = [name for name in SERIES_FIRST if name in known]
    names += [name for name in known if name not in names and not name.startswith("control_")]
    step = max((one.step for one in measured if one.step is not None), default=None)
    words = []
    for name in names[:SERIES_SHOWN]:
        one = known[name]
        late = f" (step {one.step})" if one.step is not None and one.step != step else ""
        words.append(f"{name} {one.value + 0.0:.4g}{late}")  # + 0.0: no "-0"
    return f"{'' if step is None else f'step {step}: '}{', '.join(words)}"


def _channel(now: Status) -> list[tuple[str, str]]:
    rows = [("channel", f"{now.run}, {now.channel}")]
    if now.publisher is None:
        rows.append(("cycle", "nobody has claimed the channel yet"))
    else:
        who = now.publisher
        job = "its claim cannot be read" if who.job is None else f"job {who.job}, round {who.round}"
        start = who.starts_from or "nothing"
        rows.append(("cycle", f"{who.cycle}: {job}; starts from {start}"))
        rows.append(("publisher", who.life.text))
    rows.append(("newest", _with_step(now.newest) if now.newest else "nothing is published in this lineage"))
    bound = now.visibility_bound_s
    seen = "visible: not measured, 90 s between machines" if bound is None else f"visible within {bound:g} s, measured"
    rows += [("sweeper", f"{sweeper.sweeper}: {sweeper.life.text}") for sweeper in now.sweepers[:3]]
    if not now.sweepers:
        rows.append(("sweeper", "none: nothing is swept"))
    rows.append(("retention", f"{_retention(now)}; {seen}"))
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


# The tables


def _nodes_to_show(job: JobNow, cut: bool) -> list[NodeNow]:
    """Those that are not as they should be; all of them where there is room for everything."""
    if not cut:
        return job.nodes
    if job.outcome is not None:
        return []
    odd = [node for node in job.nodes if node.state not in WELL or (node.silent_s > SILENT_S and node.state != "left")]
    return sorted(odd, key=lambda node: (node.group_rank is None, node.state == "replaced", -node.silent_s, node.node))


def _node_table(nodes: Sequence[NodeNow], size: int, cut: bool) -> RenderableType:
    made = table("rank", "node", "state", "why", right=("rank",), fixed=("node", "state"))
    for node in nodes[:size]:
        silent = f", silent {node.silent_s:.0f} s" if node.silent_s > SILENT_S and node.state != "left" else ""
        style = "" if node.state in WELL and not silent else "yellow" if node.group_rank is not None else "dim"
        cells = ("" if node.group_rank is None else node.group_rank, _cut(node.node, cut, NAME_CHARACTERS))
        made.add_row(
            *(text(cell, style) for cell in cells),
            text(node.state + silent, style),
            text(node.reason, style, cut=cut),
        )
    states = Counter(node.state for node in nodes[size:])
    return _with_rest(made, len(nodes) - size, ", ".join(f"{count} {state}" for state, count in states.items()))


def _servers(servers: Sequence[ServerNow], size: int, cut: bool) -> RenderableType:
    made = table("server", "serves", "behind", "state", "why", fixed=("serves", "behind", "state"))
    several = len({one.adapter for one in servers}) > 1
    for one in servers[:size]:
        style = {"ready": "", "updating": "", "unknown": "dim"}.get(one.state, "yellow")
        name = f"{_host(one.server)} {one.adapter}" if several else _host(one.server)
        serves = _short(one.version) if one.version else "nothing known"
        why = "" if one.state == "ready" else one.reason.removeprefix(one.server)
        made.add_row(
            text(name, style, cut=cut),
            text(serves, style),
            text(_lag(one), style),
            text(one.state, style),
            text(why, style, cut=cut),
        )
    states = Counter(one.state for one in servers[size:])
    return _with_rest(made, len(servers) - size, ", ".join(f"{count} {state}" for state, count in states.items()))


def _lag(one: ServerNow) -> str:
    if one.outside_lineage:
        return "outside"
    if one.behind_steps is None:
        return ""
    if one.behind_versions is None:
        return f"{one.behind_steps} steps"
    return f"{one.behind_versions} ({one.behind_steps} steps)" if one.behind_versions else "up to date"


def _worst_first(now: Status) -> list[ConsumerStatus]:
    def badness(one: ConsumerStatus) -> tuple[bool, bool, bool, float, str]:
        behind = float("inf") if one.behind_versions is None else one.behind_versions
        gone = one.life.state in ("closed", "silent")
        return gone, not (one.expired_by or now.newest in one.refused), not one.outside_lineage, -behind, one.name

    return sorted(now.consumers, key=badness)


def _consumers(consumers: Sequence[ConsumerStatus], size: int, cut: bool) -> RenderableType:
    made = table("consumer", "serves", "behind", "holds", "state", right=("holds",))
    for one in consumers[:size]:
        style = "dim" if one.life.state in ("closed", "silent") else ""
        made.add_row(
            *(text(cell, style) for cell in (one.name, _serves(one), _behind(one), len(one.holds))),
            text(_state(one), style, cut=cut),
        )
        for version, reason in list(one.refused.items())[-2:]:
            made.add_row(
                text(""), text("refuses", "red"), text(_short(version)), text(""), text(reason, "red", cut=cut)
            )
    held = len({version for one in consumers for version in one.holds})
    current = sum(one.behind_versions == 0 for one in consumers[size:])
    return _with_rest(made, len(consumers) - size, f"{current} up to date; {held} versions are held in all")


def _serves(one: ConsumerStatus) -> str:
    if one.serving:
        rest = f" and {len(one.serving) - 2} more" if len(one.serving) > 2 else ""
        return ", ".join(_short(version) for version in one.serving[-2:]) + rest
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
    words += [] if one.in_place else ["copies"]
    return "; ".join(words)


def _readers(now: Status, size: int) -> RenderableType:
    made = table("older reader", "loaded", "state")
    for one in now.readers[:size]:
        state = "unprotected: only min_age keeps it" if one.version else "unprotected: its version is gone"
        made.add_row(text(one.file), text(f"step {one.step}"), text(state, "yellow"))
    return _with_rest(made, len(now.readers) - size, "as unprotected")


def _versions(now: Status, size: int, cut: bool) -> RenderableType:
    made = table("version", "next", "reason", fixed=("version", "next"))
    for row in now.versions[:size]:
        word = "announced" if row.tombstoned_by else "stays" if row.stays else "goes"
        style = "" if row.stays and row.in_lineage else "dim"
        reason = _reason(row, now.consumers)
        word_style = style if word == "stays" else "yellow"
        made.add_row(text(row.version, style), text(word, word_style), text(reason, style, cut=cut))
    goes = sum(not row.stays for row in now.versions[size:])
    return _with_rest(made, len(now.versions) - size, f"{goes} of which go next", "older ones")


def _reason(row: VersionStatus, consumers: Sequence[ConsumerStatus]) -> str:
    """The sweeper's; holders without their incarnations, which is shorter, and told above."""
    if not row.reason.startswith("held by"):
        return row.reason
    holders = [one.name for one in consumers if row.version in one.holds]
    more = f" and {len(holders) - 3} more" if len(holders) > 3 else ""
    return f"held by {', '.join(holders[:3])}{more}" if holders else row.reason


def _anomalies(anomalies: Sequence[Anomaly], size: int, cut: bool) -> RenderableType:
    made = table("at", "process", "went wrong", fixed=("at", "process"))
    for one in anomalies[:size]:
        times = f" ({one.num} times)" if one.num > 1 else ""
        version = f"{_short(one.version)}: " if one.version else ""
        what = f"{one.what}{times}{': ' if version or one.reason else ''}{version}{one.reason}"
        made.add_row(text(_clock(one.time)), text(_cut(one.process, cut, NAME_CHARACTERS)), text(what, cut=cut))
    return _with_rest(made, len(anomalies) - size, "older", "kinds")


def _with_rest(made: RenderableType, left: int, words: str, what: str = "more") -> RenderableType:
    from rich.console import Group

    if left <= 0:
        return made
    return Group(made, text(f"… and {left} {what}, {words} (--all lists them)", "dim"))


# Words


def _cut(value: str, cut: bool, limit: int = VALUE_CHARACTERS) -> str:
    return value[: limit - 1] + "…" if cut and len(value) > limit else value


def _clock(time: str) -> str:
    """The time of day of an ISO time; people compare it with their own logs."""
    return time[11:19] if len(time) >= 19 else time


def _host(url: str) -> str:
    return url.removeprefix("http://").removeprefix("https://")


def _short(version: str) -> str:
    """A version for a narrow column: cycle and step tell people more than the name does."""
    parsed = parse_version(version)
    return version if parsed is None else f"c{parsed.cycle} step {parsed.step}"


def _with_step(version: str) -> str:
    parsed = parse_version(version)
    return version if parsed is None else f"{version}, step {parsed.step}"

"""The report: one HTML page that needs nothing but itself.

Its style and script stand in it, allowed by their digests alone (Content-Security-Policy): whatever text an event
brings along, the browser neither runs it nor fetches anything for it. Tables are written here, escaped; drawings are
made by the script from the data, as text nodes and attributes, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import json

from holdfast.story.data import page_data
from holdfast.story.kinds import GROUPS
from holdfast.story.run import Run
from holdfast.story.tables import anomaly_table, curve_cards, round_table
from holdfast.story.telling import clip
from holdfast.story.words import day, days, headline, lasting, plural, tiles

SCRIPTS = ("base.js", "timeline.js", "charts.js")
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16' "
    "rx='4' fill='%230072b2'/%3E%3Cpath d='M4 4v8M12 4v8M4 8h8' stroke='white' stroke-width='2.2'/%3E%3C/svg%3E"
)


def page(run: Run, title: str, version: str) -> str:
    """The whole page. `title`: of the run; `version`: of the Holdfast that writes it."""
    title, style = clip(title), _asset("page.css")
    script = "(() => {\n'use strict';\n" + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{_text(title)} · Holdfast report</title>
<link rel="icon" href="{ICON}">
<style>{style}</style>
</head>
<body>
{_header(run, title)}
<main>
{_tiles(run)}
{_timeline(run)}
{_failovers(run)}
{_curves(run)}
{_anomalies(run)}
</main>
{_footer(run, version)}
<div id="tip" role="presentation"></div>
<script type="application/json" id="run">{_embedded(run)}</script>
<script>{script}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return importlib.resources.files("holdfast.story").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(run: Run) -> str:
    """The data as JSON in ASCII, in which no tag, comment or entity can begin or end."""
    text = json.dumps(page_data(run), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _header(run: Run, title: str) -> str:
    mood, word, why = headline(run)
    reason = f'<p class="why">{_text(why)}</p>' if why else ""
    sign = {"good": "✓", "bad": "✕", "open": "…"}[mood]
    when = f"<span>{_text(days(run))}</span>" if run.lanes else ""
    parts = [plural(run.totals.processes, "process", "processes")] + (
        [lasting(run.end_s - run.start_s)] if when else []
    )
    return f"""<header>
<p class="eyebrow">Holdfast report</p>
<h1>{_text(title)}</h1>
<div class="lede"><span class="badge {mood}"><span aria-hidden="true">{sign}</span>{_text(word)}</span>{when}<span>{
        _text(" · ".join(reversed(parts)))
    }</span></div>
{reason}
</header>"""


def _tiles(run: Run) -> str:
    moods = {(False, False): "", (True, False): " bad", (False, True): " wide", (True, True): " bad wide"}
    made = [
        f'<div class="tile card{moods[tile.bad, bool(tile.before)]}"><dt>{_text(tile.name)}</dt>'
        f"<dd>{_text(tile.before)}{'<span class=arrow> → </span>' if tile.before else ''}{_text(tile.value)}"
        f"<small>{_text(tile.more)}</small></dd></div>"
        for tile in tiles(run)
    ]
    return f'<dl class="tiles" aria-label="The run in numbers">{"".join(made)}</dl>'


def _timeline(run: Run) -> str:
    note = (
        "Lanes of different processes and machines are aligned by their wall clocks; how long something took is said "
        "by its own process's monotonic clock. Drag to zoom in, double-click for the whole run."
    )
    tools = (
        '<div class="tools"><button type="button" data-zoom="in" aria-label="Zoom in">+</button>'
        '<button type="button" data-zoom="out" aria-label="Zoom out">−</button>'
        '<button type="button" data-zoom="all">Whole run</button></div>'
    )
    if not run.lanes:
        return _section("timeline", "Timeline", "", '<p class="card empty">There is no event in these files.</p>')
    body = (
        '<div class="card">'
        '<div id="timeline-plot" tabindex="0" role="group" aria-label="Timeline: plus and minus zoom, arrows move">'
        '</div><ul class="legend" id="timeline-legend" aria-label="Legend"></ul>'
        f"</div>{_no_script()}"
    )
    return _section("timeline", "Timeline", note, body, tools)


def _failovers(run: Run) -> str:
    failovers = run.failovers
    if not run.rounds:
        empty = '<p class="card empty">No rounds: no agent has written its events here (`holdfast run --events`).</p>'
        return _section("failovers", "Failovers", "", empty)
    note = (
        "From the lost node's last sign of life until every node's workers run again, by the coordinator's own clock; "
        "then until the next version is published, by wall clocks."
    )
    if not failovers:
        said = f"Nobody was lost: {plural(len(run.rounds), 'round', 'rounds')}, none of them forced."
        body = f'<div class="card"><p class="empty">{said}</p>{round_table(run, _text)}</div>'
        return _section("failovers", "Failovers", "", body)
    chart = '<div class="phases"><ul class="legend" id="phases-legend"></ul><div id="phases-plot"></div></div>'
    drawn = '<p class="note">Drawn are the 12 longest.</p>' if len(failovers) > 12 else ""
    body = f'<div class="card">{chart}{round_table(run, _text)}</div>'
    return _section("failovers", "Failovers", note, body, drawn)


def _curves(run: Run) -> str:
    cards = curve_cards(run, _text)
    note = "Over optimizer steps. Points: what was measured, or the means of neighbours; line: smoothed over a tenth."
    note += " Dashed verticals: a node was lost." if run.failovers and cards else ""
    empty = (
        '<p class="card empty">Nothing was measured. What a trainer or an orchestrator says with '
        "<code>log.emit(&quot;measured&quot;, step=12, reward=0.4)</code> is drawn here.</p>"
    )
    return _section("curves", "Curves", note if cards else "", f'<div class="curves">{cards}</div>' if cards else empty)


def _anomalies(run: Run) -> str:
    if not run.anomalies:
        return _section("anomalies", "Anomalies", "", '<p class="card empty">Nothing went wrong.</p>')
    note = "Everything that a person may want to know of. What was said in much the same words stands in one line."
    return _section("anomalies", "Anomalies", note, anomaly_table(run, _text))


def _section(name: str, title: str, note: str, body: str, tools: str = "") -> str:
    said = f'<p class="note">{_text(note)}</p>' if note else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><div class="head"><div><h2 id="{name}-title">{title}</h2>'
        f"{said}</div>{tools}</div>{body}</section>"
    )


def _no_script() -> str:
    return '<noscript><p class="card empty">Drawings need JavaScript; the tables below do not.</p></noscript>'


def _footer(run: Run, version: str) -> str:
    left_out = "; ".join(f"{name}: {count}" for name, count in sorted(run.left_out.items()))
    more = f" Beyond what this page holds: {left_out}." if left_out else ""
    first = f" First event {day(run.start_s)}." if run.lanes else ""
    lanes = plural(len(run.lanes), "lane", "lanes")
    text = (
        f"Holdfast {version} · {plural(run.totals.events, 'event', 'events')} of "
        f"{plural(run.totals.files, 'file', 'files')}, {lanes} in {len(GROUPS)} groups.{first}{more}"
    )
    return f"<footer><p>{_text(text)}</p></footer>"

"""The page's tables and cards, as HTML. Whatever is not written here goes through `text`, which escapes it."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.story.kinds import TROUBLES
from holdfast.story.run import Anomaly, Round, Run, Series
from holdfast.story.words import count, elapsed, figure, lasting, plural

Text = Callable[[object], str]
ROUNDS_MAX = 300
CURVES_MAX = 24
PHASES = (("noticed", "noticed"), ("stopped", "all said yes"), ("committed", "committed"), ("started", "workers run"))
KINDS = {"first": "the job begins", "failover": "node lost", "restart": "workers began anew", "wanted": "wanted"}
FIRST = ("reward", "staleness", "loss")
CONTROL = "control_"


def round_table(run: Run, text: Text) -> str:
    """All rounds, with the phases of the change to each; a button shows a failover in the timeline."""
    rows = "".join(_round_row(run, round_, text) for round_ in run.rounds[:ROUNDS_MAX])
    left = len(run.rounds) - ROUNDS_MAX
    caption = f"Rounds; {left} later ones are left out" if left > 0 else "Rounds"
    heads = "".join(f'<th class="n" scope="col">{name}</th>' for _, name in PHASES)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Rounds"><table class="wide">'
        f'<caption class="sr">{caption}</caption><thead><tr><th scope="col">Round</th><th scope="col">At</th>'
        f'<th scope="col">Why</th>'
        f'{heads}<th class="n" scope="col">total</th><th class="n" scope="col">next version</th>'
        f'<th scope="col"><span class="sr">Show</span></th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _round_row(run: Run, round_: Round, text: Text) -> str:
    took = {phase.name: f"{'' if phase.sure else '≈ '}{lasting(phase.took_s)}" for phase in round_.phases}
    cells = "".join(f'<td class="n" data-name="{label}">{took.get(name, "")}</td>' for name, label in PHASES)
    total = lasting(round_.total_s) if round_.total_s is not None else ""
    again = f"≈ {lasting(round_.output_again_s)}" if round_.output_again_s is not None else ""
    seats = plural(round_.num_seats, "seat", "seats") + (
        f", {plural(round_.num_spares, 'spare', 'spares')}" if round_.num_spares else ""
    )
    first_ms = (round_.start_s - run.start_s) * 1000
    last_ms = first_ms + ((round_.total_s or 0.0) + (round_.output_again_s or 0.0) + 0.5) * 1000
    show = f'<button type="button" data-from="{first_ms - 1500:.0f}" data-to="{last_ms + 1500:.0f}">show</button>'
    why = text(round_.reason) if round_.kind == "first" else f"{KINDS[round_.kind]}: {text(round_.reason)}"
    at = elapsed(round_.committed_s - run.start_s)
    return (
        f'<tr><td data-name="round">{round_.number}</td><td class="t" data-name="at">{at}</td>'
        f'<td data-name="why"><div>{why}<br><span class="note">{seats}</span></div></td>'
        f'{cells}<td class="n" data-name="total"><b>{total}</b></td><td class="n" data-name="next version">{again}</td>'
        f"<td>{show}</td></tr>"
    )


def curve_cards(run: Run, text: Text) -> str:
    """A card for each measured series, the most asked for first; a control is drawn beside the series it belongs to."""
    named = {series.name: place for place, series in enumerate(run.series)}
    alone = [s for s in run.series if not (s.name.startswith(CONTROL) and s.name.removeprefix(CONTROL) in named)]
    alone.sort(key=lambda s: FIRST.index(s.name) if s.name in FIRST else len(FIRST))
    return "".join(
        _card(series, named[series.name], named.get(CONTROL + series.name), run, text) for series in alone[:CURVES_MAX]
    )


def _card(series: Series, place: int, control: int | None, run: Run, text: Text) -> str:
    tenths = _tenths(series) + (f" · control {_tenths(run.series[control])}" if control is not None else "")
    return (
        f'<div class="curve card" data-series="{place}" data-control="{"" if control is None else control}">'
        f'<div class="top"><h3>{text(series.name)}</h3><p>{tenths}</p></div><svg height="190"></svg></div>'
    )


def _tenths(series: Series) -> str:
    if series.first_tenth is None or series.last_tenth is None:
        return ""
    return f"{figure(series.first_tenth)} → {figure(series.last_tenth)}"


def anomaly_table(run: Run, text: Text) -> str:
    """What went wrong: when, what, who, which version, why. Buttons choose kinds."""
    chips = "".join(
        f'<button type="button" aria-pressed="false" data-kind="{text(kind)}">{text(TROUBLES.get(kind, kind))}'
        f"<b>{count(num)}</b></button>"
        for kind, num in sorted(run.num_anomalies.items(), key=lambda pair: -pair[1])
    )
    rows = "".join(_anomaly_row(run, anomaly, text) for anomaly in run.anomalies)
    return (
        f'<div class="card"><div class="chips" role="group" aria-label="Show only these kinds">{chips}</div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Anomalies"><table class="wide">'
        '<caption class="sr">Anomalies by time</caption><thead><tr><th scope="col">At</th><th scope="col">What</th>'
        '<th scope="col">Process</th><th scope="col">Why</th><th scope="col">Version</th>'
        f'<th class="n" scope="col">Times</th></tr></thead><tbody>{rows}</tbody></table></div></div>'
    )


def _anomaly_row(run: Run, anomaly: Anomaly, text: Text) -> str:
    known = anomaly.first_s == anomaly.first_s  # a file without one readable event has no time
    when = elapsed(anomaly.first_s - run.start_s) if known else ""
    if known and anomaly.num > 1 and anomaly.last_s - anomaly.first_s >= 0.1:
        when += f" – {elapsed(anomaly.last_s - run.start_s)}"
    meant = anomaly.kind == "fault"
    dot = f'<span class="dot{" meant" if meant else ""}" aria-hidden="true">{"⚡" if meant else "◆"}</span>'
    return (
        f'<tr data-kind="{text(anomaly.kind)}"><td class="t" data-name="at">{when}</td><td data-name="what">{dot}'
        f'{text(anomaly.what)}</td><td data-name="process">{text(anomaly.process)}</td><td data-name="why">'
        f'{text(anomaly.reason)}</td><td class="c" data-name="version">{text(anomaly.version)}</td>'
        f'<td class="n" data-name="times">{count(anomaly.num) if anomaly.num > 1 else ""}</td></tr>'
    )

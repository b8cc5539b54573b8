// The phases of failovers as stacked bars, and the measured series as small multiples; both SVG.

const DRAWN_MAX = 12;

function drawPhases() {
  const box = byId("phases-plot");
  if (!box) return;
  const all = run.rounds.filter((round) => ["failover", "restart"].includes(round.kind) && round.phases.length);
  const rounds = [...all].sort((a, b) => b.took - a.took).slice(0, DRAWN_MAX).sort((a, b) => a.start - b.start);
  const segments = (round) => [...round.phases, ...(round.trains === null ? [] : [["trains", round.trains, false]])];
  const sum = (round) => segments(round).reduce((total, phase) => total + phase[1], 0);
  const width = box.clientWidth, left = NARROW.matches ? 0 : 148, right = 0, row = NARROW.matches ? 46 : 34;
  const scale = (width - left - right) / Math.max(1, ...rounds.map(sum));
  const svg = draw("svg", { width, height: rounds.length * row, role: "img", "aria-label": "How long each phase of each failover took; the table below has the numbers." });
  rounds.forEach((round, number) => {
    const top = number * row + (NARROW.matches ? 20 : 5), high = 24;
    const y = NARROW.matches ? top - 6 : top + 16;
    svg.append(draw("text", { x: 0, y, class: "strong" }, `round ${round.number}`), draw("text", { x: NARROW.matches ? 64 : left - 14, y, "text-anchor": NARROW.matches ? "start" : "end" }, lasting(round.took)));
    let x = left;
    for (const [name, took, sure] of segments(round)) {
      const long = took * scale, bar = draw("g", { class: "phase", "data-phase": name });
      bar.append(draw("rect", { x, y: name === "trains" ? top + 6 : top, width: Math.max(1, long - 1), height: name === "trains" ? 12 : high, rx: 2, fill: `var(${PHASES[name][0]})` }));
      if (long > 50) bar.append(draw("text", { x: x + long / 2, y: top + 16, "text-anchor": "middle", class: "on" }, lasting(took)));
      const lines = [`${lasting(took)} ${PHASES[name][1]}`, sure ? "by the coordinator's own clock" : "by the wall clocks of several processes", round.reason];
      bar.addEventListener("pointermove", (event) => showTip(event, lines));
      bar.addEventListener("pointerleave", hideTip);
      svg.append(bar);
      x += long;
    }
  });
  box.replaceChildren(svg);
}

function phaseLegend() {
  const list = byId("phases-legend");
  if (!list) return;
  for (const [name, [colour, label]] of Object.entries(PHASES)) {
    const svg = draw("svg", { width: 14, height: 12, "aria-hidden": "true" });
    svg.append(draw("rect", { width: 14, height: name === "trains" ? 6 : 12, y: name === "trains" ? 3 : 0, rx: 2, fill: `var(${colour})` }));
    list.append(make("li", {}, svg, label));
  }
}

/** At each point, a straight line fitted to the tenth of the points around it; near the ends, to those that there are. */
function smooth(points) {
  const reach = Math.max(2, Math.floor(points.length / 20));
  return points.map(([step], at) => {
    let [weight, x, y, xx, xy] = [0, 0, 0, 0, 0];
    for (let k = Math.max(0, at - reach); k <= Math.min(points.length - 1, at + reach); k++) {
      const w = points[k][4] * (1 - (Math.abs(k - at) / (reach + 1)) ** 2), dx = points[k][0] - step;
      weight += w; x += w * dx; y += w * points[k][1]; xx += w * dx * dx; xy += w * dx * points[k][1];
    }
    const spread = weight * xx - x * x;
    return [step, spread > 1e-9 * weight * xx ? (xx * y - x * xy) / spread : y / weight];
  });
}

const line = (points, x, y) => points.map((p, at) => `${at ? "L" : "M"}${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join("");

function drawCurve(card, series, control) {
  const old = card.querySelector("svg"), width = card.clientWidth - 34, height = 190;
  const left = 46, right = width - 10, top = 10, bottom = height - 24;
  const curves = [series, ...(control ? [control] : [])];
  const means = curves.flatMap((one) => one.points.map((p) => p[1]));
  const steps = curves.flatMap((one) => one.points.map((p) => p[0]));
  let low = means.reduce((a, b) => Math.min(a, b)), high = means.reduce((a, b) => Math.max(a, b));
  if (low > 0 && low < 0.5 * high) low = 0;
  if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 2, high + Math.abs(high) / 2];
  const first = steps.reduce((a, b) => Math.min(a, b)), last = steps.reduce((a, b) => Math.max(a, b)), span = last - first || 1;
  const room = (high - low) * 0.06;
  const x = (step) => left + ((step - first) / span) * (right - left);
  const y = (value) => bottom - ((value - low) / (high + room - low)) * (bottom - top);
  const svg = draw("svg", { width, height, role: "img", "aria-label": `${series.name} over steps ${first} to ${last}` });
  for (const tick of niceTicks(low, high + room, 5)) {
    svg.append(draw("line", { x1: left, x2: right, y1: y(tick), y2: y(tick), stroke: "var(--grid)" }));
    svg.append(draw("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, figure(Math.abs(tick) < 1e-12 ? 0 : tick)));
  }
  for (const tick of niceTicks(first, last, Math.max(2, Math.floor(width / 90))).filter((step) => Number.isInteger(step))) {
    svg.append(draw("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, group(tick)));
  }
  const lost = lostSteps(series);
  for (const step of lost) {
    svg.append(draw("line", { class: "lost", x1: x(step), x2: x(step), y1: top, y2: bottom, stroke: "var(--red)", "stroke-dasharray": "3 3", "stroke-width": 1.2, opacity: lost.length > 12 ? 0.4 : 1 }));
  }
  for (const one of curves.toReversed()) addCurve(svg, one, one === control, x, y);
  if (control) {
    const end = smooth(control.points).at(-1);
    svg.append(draw("text", { x: right - 2, y: y(end[1]) - 8, "text-anchor": "end" }, "control"));
  }
  watchCurve(svg, curves, x, y, top, bottom, left);
  old.replaceWith(svg);
}

function addCurve(svg, series, isControl, x, y) {
  const colour = isControl ? "var(--grey)" : "var(--blue)";
  const dots = series.points.map((p) => disc(Number(x(p[0]).toFixed(1)), Number(y(p[1]).toFixed(1)), 1.7)).join("");
  svg.append(draw("path", { class: "raw", d: dots, fill: colour, opacity: series.points.length > 200 ? 0.28 : 0.42 }));
  const attributes = { class: "smooth", d: line(smooth(series.points), x, y), fill: "none", stroke: colour, "stroke-width": 2.2, "stroke-linejoin": "round", "stroke-linecap": "round" };
  svg.append(draw("path", isControl ? { ...attributes, "stroke-dasharray": "6 4" } : attributes));
}

/** At which steps of this series a node was lost. */
function lostSteps(series) {
  const times = series.points.map((p) => p[5]);
  return run.rounds.filter((round) => round.kind === "failover" || round.kind === "restart").slice(0, 200)
    .map((round) => { const at = times.findIndex((ms) => ms > round.start); return at < 1 ? null : series.points[at][0]; })
    .filter((step) => step !== null);
}

function watchCurve(svg, curves, x, y, top, bottom, left) {
  const hair = draw("line", { y1: top, y2: bottom, stroke: "var(--faint)", visibility: "hidden" });
  svg.append(hair);
  const lines = curves.map((one) => smooth(one.points));
  svg.addEventListener("pointermove", (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    if (at < left - 4) return;
    const nearest = (points) => points.reduce((best, p, n) => (Math.abs(x(p[0]) - at) < Math.abs(x(points[best][0]) - at) ? n : best), 0);
    const rows = curves.map((one, n) => { const k = nearest(one.points), p = one.points[k]; return [one.name, p, lines[n][k]]; });
    const step = rows[0][1][0];
    hair.setAttribute("x1", x(step));
    hair.setAttribute("x2", x(step));
    hair.setAttribute("visibility", "visible");
    showTip(event, [`step ${group(step)}`, ...rows.map(([name, p, mean]) => `${name}: ${figure(p[1])}${p[4] > 1 ? ` (${figure(p[2])} to ${figure(p[3])}, ${group(p[4])} values)` : ""}, smoothed ${figure(mean[1])}`), utc(rows[0][1][5])]);
  });
  svg.addEventListener("pointerleave", () => { hair.setAttribute("visibility", "hidden"); hideTip(); });
}

function setUpCharts() {
  phaseLegend();
  const phases = byId("phases-plot");
  if (phases) onChange(phases, drawPhases);
  for (const card of document.querySelectorAll(".curve")) {
    const series = run.series[Number(card.dataset.series)];
    const control = card.dataset.control === "" ? null : run.series[Number(card.dataset.control)];
    onChange(card, () => drawCurve(card, series, control));
  }
}
setUpCharts();

// The table of anomalies shows the kinds whose buttons are pressed; with none pressed, all.
const chips = [...document.querySelectorAll(".chips button")];
for (const chip of chips) {
  chip.addEventListener("click", () => {
    chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
    const wanted = chips.filter((one) => one.getAttribute("aria-pressed") === "true").map((one) => one.dataset.kind);
    for (const row of document.querySelectorAll("#anomalies tbody tr")) row.hidden = wanted.length > 0 && !wanted.includes(row.dataset.kind);
  });
}
document.documentElement.dataset.drawn = "yes";

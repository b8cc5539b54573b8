// The time line: a group of lanes for each kind of process, on canvas; a group of very many lanes is folded into one area.

const MANY = 24;
const LABELS_MAX = 120;
const timeline = byId("timeline-plot");
const whole = [-0.01 * run.length_ms, 1.01 * run.length_ms];
let shown = [...whole];
const groups = [];

const GROUP_NOTE = { Nodes: "agent", Servers: "server", Consumers: "consumer", Sweepers: "sweeper" };
const noteOf = (name, num) => `${group(num)} ${GROUP_NOTE[name] ?? "process"}${num === 1 ? "" : name in GROUP_NOTE ? "s" : "es"}`;

function unpack(lane) {
  const bars = [];
  for (const [kind, flat] of lane.bars) {
    const name = run.kinds[kind][0];
    for (let i = 0; i < flat.length; i += 5) {
      bars.push({ kind: name, label: run.kinds[kind][1], start: flat[i], took: flat[i + 1], num: flat[i + 2], busy: flat[i + 3], text: run.texts[flat[i + 4]] });
    }
  }
  bars.sort((a, b) => (a.kind in MARK) - (b.kind in MARK) || layer(a) - layer(b) || a.start - b.start);
  return { name: lane.name, bars };
}
const layer = (bar) => ({ parked: 0, unknown: 0, serving: 1, updating: 2, engine: 3, load: 4 })[bar.kind] ?? 1;

function setUp() {
  if (!run.lanes.length) return;
  const axis = make("canvas", { "aria-hidden": "true" });
  timeline.append(make("div", { class: "axis" }, axis));
  for (const name of run.groups) {
    const lanes = run.lanes.filter((lane) => run.groups[lane.group] === name).map(unpack);
    if (!lanes.length) continue;
    const open = lanes.length <= MANY;
    const button = make("button", { type: "button", "aria-expanded": String(open) }, name, make("span", {}, noteOf(name, lanes.length)));
    const label = `${name}: ${lanes.length} lanes. The tables below hold what matters of them as text.`;
    const canvas = make("canvas", { role: "img", "aria-label": label });
    const plot = make("div", { class: "plot" }, canvas);
    const one = { name, lanes, open, canvas, plot, labels: [] };
    button.addEventListener("click", () => {
      one.open = !one.open;
      button.setAttribute("aria-expanded", String(one.open));
      drawGroup(one);
    });
    timeline.append(make("div", { class: "group" }, button, plot));
    groups.push(one);
    watchPointer(one);
  }
  const redraw = () => { drawAxis(axis); groups.forEach(drawGroup); };
  zoom = (from, to) => {
    const middle = (from + to) / 2, length = Math.max(20, Math.min(to - from, whole[1] - whole[0]));
    const start = Math.max(whole[0], Math.min(middle - length / 2, whole[1] - length));
    shown = [start, start + length];
    redraw();
  };
  onChange(timeline, redraw);
  tools();
  legend();
}
let zoom = () => {};

function tools() {
  const by = (factor) => () => {
    const middle = (shown[0] + shown[1]) / 2, half = ((shown[1] - shown[0]) / 2) * factor;
    zoom(middle - half, middle + half);
  };
  const move = (part) => { const by = (shown[1] - shown[0]) * part; zoom(shown[0] + by, shown[1] + by); };
  const actions = { in: by(0.5), out: by(2), all: () => zoom(...whole) };
  for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", actions[button.dataset.zoom]);
  for (const button of document.querySelectorAll("[data-from]")) {
    button.addEventListener("click", () => {
      zoom(Number(button.dataset.from), Number(button.dataset.to));
      byId("timeline").scrollIntoView({ block: "start" });
    });
  }
  timeline.addEventListener("keydown", (event) => {
    if (event.target !== timeline) return;
    const keys = { "+": actions.in, "=": actions.in, "-": actions.out, 0: actions.all, ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2) };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
}

function legend() {
  const used = new Set(groups.flatMap((one) => one.lanes.flatMap((lane) => lane.bars.map((bar) => bar.kind))));
  const list = byId("timeline-legend");
  for (const [name, label] of run.kinds.filter(([kind]) => used.has(kind))) {
    const svg = draw("svg", { width: name in BAR ? 18 : 12, height: 12, "aria-hidden": "true" });
    if (name in BAR) svg.append(draw("rect", { width: 18, height: Math.max(4, 12 * BAR[name][1]), y: 6 - Math.max(2, 6 * BAR[name][1]), rx: 1.5, fill: `var(${BAR[name][0]})` }));
    else svg.append(draw("path", { d: SHAPES[MARK[name][1]](6, 6, 5), fill: OUTLINED.has(MARK[name][1]) ? "none" : `var(${MARK[name][0]})`, stroke: `var(${MARK[name][0]})`, "stroke-width": 1.6 }));
    list.append(make("li", { "data-kind": name }, svg, label));
  }
}

const OUTLINED = new Set(["ring", "cross", "tick", "plus"]);
const SHAPES = {
  up: (x, y, r) => `M${x},${y - r}L${x + r},${y + r * 0.8}L${x - r},${y + r * 0.8}Z`,
  flag: (x, y, r) => `M${x - r * 0.7},${y + r}V${y - r}L${x + r},${y - r * 0.3}L${x - r * 0.7},${y + r * 0.2}Z`,
  tick: (x, y, r) => `M${x},${y - r * 1.1}V${y + r * 1.1}`,
  cross: (x, y, r) => `M${x - r * 0.7},${y - r * 0.7}L${x + r * 0.7},${y + r * 0.7}M${x + r * 0.7},${y - r * 0.7}L${x - r * 0.7},${y + r * 0.7}`,
  plus: (x, y, r) => `M${x - r},${y}H${x + r}M${x},${y - r}V${y + r}`,
  star: (x, y, r) => `M${x},${y - r}L${x + r * 0.35},${y - r * 0.35}L${x + r},${y}L${x + r * 0.35},${y + r * 0.35}L${x},${y + r}L${x - r * 0.35},${y + r * 0.35}L${x - r},${y}L${x - r * 0.35},${y - r * 0.35}Z`,
  ring: (x, y, r) => disc(x, y, r * 0.7), dot: (x, y, r) => disc(x, y, r * 0.45), disc: (x, y, r) => disc(x, y, r * 0.7),
  square: (x, y, r) => `M${x - r * 0.8},${y - r * 0.8}h${r * 1.6}v${r * 1.6}h${-r * 1.6}Z`,
  diamond: (x, y, r) => `M${x},${y - r}L${x + r},${y}L${x},${y + r}L${x - r},${y}Z`,
  bolt: (x, y, r) => `M${x + r * 0.3},${y - r * 1.1}L${x - r * 0.8},${y + r * 0.2}H${x}L${x - r * 0.3},${y + r * 1.1}L${x + r * 0.8},${y - r * 0.2}H${x}Z`,
};
function disc(x, y, r) { return `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`; }

const place = (ms, width) => ((ms - shown[0]) / (shown[1] - shown[0])) * width;

function paper(canvas, height, scale = window.devicePixelRatio || 1) {
  const margin = NARROW.matches ? 0 : parseFloat(getComputedStyle(canvas).marginLeft);
  const width = Math.max(40, timeline.clientWidth - margin);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const ink = canvas.getContext("2d");
  ink.setTransform(scale, 0, 0, scale, 0, 0);
  return [ink, width];
}

function drawAxis(canvas) {
  const [ink, width] = paper(canvas, 46);
  const [ticks, grain] = timeTicks(...shown, Math.max(3, Math.floor(width / 90)));
  ink.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  ink.textBaseline = "middle";
  run.rounds.forEach((round, at) => {
    const from = place(round.start + round.took, width), to = place(at + 1 < run.rounds.length ? run.rounds[at + 1].start : run.length_ms, width);
    if (to < 0 || from > width) return;
    ink.fillStyle = colours[at % 2 ? "--pale" : "--wash"];
    ink.fillRect(from, 4, Math.max(1, to - from), 16);
    const text = `round ${round.number}`, left = Math.max(from, 0);
    for (const words of [text, String(round.number)]) {
      if (ink.measureText(words).width + 8 > Math.min(to, width) - left) continue;
      ink.fillStyle = colours["--soft"];
      ink.fillText(words, left + 4, 12.5);
      break;
    }
  });
  stripes(ink, width, 4, 20);
  ink.fillStyle = colours["--soft"];
  for (const tick of ticks) {
    const x = place(tick, width), text = elapsed(tick, grain), half = ink.measureText(text).width / 2;
    if (x - half < 2 || x + half > width - 2) continue;
    ink.fillText(text, x - half, 35);
  }
}

/** What a change of round cost, through all lanes. */
function stripes(ink, width, top, bottom) {
  for (const round of run.rounds) {
    if (!["failover", "restart"].includes(round.kind)) continue;
    const from = place(round.start, width), to = place(round.start + round.took, width);
    if (to < 0 || from > width) continue;
    ink.fillStyle = colours["--shade"];
    ink.fillRect(from - 1, top, Math.max(3, to - from + 2), bottom - top);
  }
}

function rowHeight(one) {
  if (one.lanes.length <= LABELS_MAX) return NARROW.matches ? 38 : 24;
  return one.lanes.length > 2000 ? 2 : 4;
}

function drawGroup(one) {
  one.labels.forEach((label) => label.remove());
  one.labels = [];
  if (one.open) drawLanes(one);
  else drawArea(one);
}

function drawLanes(one) {
  const row = rowHeight(one), height = row * one.lanes.length + 6, named = one.lanes.length <= LABELS_MAX;
  const [ink, width] = paper(one.canvas, height, height > 2000 ? 1 : undefined);
  ink.strokeStyle = colours["--grid"];
  ink.beginPath();
  for (const tick of timeTicks(...shown, Math.max(3, Math.floor(width / 90)))[0]) {
    ink.moveTo(Math.round(place(tick, width)) + 0.5, 0);
    ink.lineTo(Math.round(place(tick, width)) + 0.5, height);
  }
  ink.stroke();
  stripes(ink, width, 0, height);
  const lift = named && NARROW.matches ? 15 : 0;
  one.lanes.forEach((lane, number) => {
    const top = 3 + number * row + lift, high = row - lift;
    const drawn = {};
    for (const bar of lane.bars) drawBar(ink, bar, width, top, high, drawn);
    if (!named) return;
    const label = make("span", { class: "lane", title: lane.name }, lane.name);
    label.style.top = `${3 + number * row + (lift ? 1 : 4)}px`;
    one.labels.push(label);
  });
  one.plot.append(...one.labels);
}

/** `drawn`: where the last mark of each kind stands; one that would cover it is left to the line between them. */
function drawBar(ink, bar, width, top, high, drawn) {
  const from = place(bar.start, width), to = place(bar.start + bar.took, width);
  if (to < -8 || from > width + 8) return;
  if (bar.kind in BAR) {
    const [colour, thick, middle] = BAR[bar.kind], height = Math.max(1, high * thick);
    const left = Math.max(-2, from), long = Math.min(width + 2, to) - left;
    ink.globalAlpha = bar.num > 1 && bar.took ? 0.3 + 0.7 * Math.min(1, bar.busy / bar.took) : 1;
    ink.fillStyle = colours[colour];
    ink.fillRect(left, top + high * middle - height / 2, Math.max(high > 8 ? 1.5 : 1, long - (long > 4 ? 0.75 : 0)), height);
    ink.globalAlpha = 1;
    return;
  }
  const [colour, shape] = MARK[bar.kind], y = top + high / 2;
  const crowded = from - (drawn[bar.kind] ?? -99) < 9;
  if ((bar.num > 1 && to - from > 3) || crowded) {
    ink.fillStyle = colours[colour];
    ink.globalAlpha = 0.35;
    ink.fillRect(crowded ? drawn[bar.kind] : from, y - 1.5, Math.max(1, to - (crowded ? drawn[bar.kind] : from)), 3);
    ink.globalAlpha = 1;
  }
  const places = (bar.num > 1 && to - from > 12 ? [from, to] : [from]).filter((x, at) => at || !crowded);
  for (const x of places) mark(ink, shape, colour, x, y, Math.max(1.5, Math.min(4.6, high / 4.5)));
  drawn[bar.kind] = places.at(-1) ?? drawn[bar.kind];
}

function mark(ink, shape, colour, x, y, r) {
  const path = new Path2D(SHAPES[shape](x, y, r));
  ink.lineWidth = 1.4;
  if (OUTLINED.has(shape)) {
    ink.strokeStyle = colours[colour];
    ink.stroke(path);
    return;
  }
  ink.strokeStyle = colours["--card"];
  ink.stroke(path);
  ink.fillStyle = colours[colour];
  ink.fill(path);
}

const AREA = 76;
const BESIDE = new Set(["load", "engine", "store_away"]); // what a lane does while it is in some state
/** How many lanes were in each state, over time, one colour on the other. */
function drawArea(one) {
  const [ink, width] = paper(one.canvas, AREA);
  const cells = Math.max(20, Math.floor(width / 2)), kinds = {}, grain = (shown[1] - shown[0]) / cells;
  for (const lane of one.lanes) {
    for (const bar of lane.bars) {
      if (!(bar.kind in BAR) || BESIDE.has(bar.kind) || bar.start + bar.took < shown[0] || bar.start > shown[1]) continue;
      const sums = (kinds[bar.kind] ??= new Float64Array(cells));
      const share = bar.num > 1 && bar.took ? Math.min(1, bar.busy / bar.took) : 1;
      const from = Math.max(0, (bar.start - shown[0]) / grain), to = Math.min(cells, (bar.start + bar.took - shown[0]) / grain);
      for (let cell = Math.floor(from); cell < to; cell++) sums[cell] += share * (Math.min(to, cell + 1) - Math.max(from, cell));
    }
  }
  const names = Object.keys(BAR).filter((kind) => kind in kinds);
  const order = ["running", "serving", "hold", ...names.filter((kind) => !["running", "serving", "hold"].includes(kind))].filter((kind) => kind in kinds);
  const base = new Float64Array(cells);
  let most = 1;
  for (let cell = 0; cell < cells; cell++) most = Math.max(most, order.reduce((sum, kind) => sum + kinds[kind][cell], 0));
  one.area = { kinds, order, grain, most };
  const high = AREA - 18;
  for (const kind of order) {
    ink.fillStyle = colours[BAR[kind][0]];
    ink.beginPath();
    const step = (cell, height) => { ink.lineTo((cell / cells) * width, AREA - 4 - height); ink.lineTo(((cell + 1) / cells) * width, AREA - 4 - height); };
    for (let cell = 0; cell < cells; cell++) step(cell, base[cell] + (kinds[kind][cell] / most) * high);
    for (let cell = cells - 1; cell >= 0; cell--) {
      ink.lineTo(((cell + 1) / cells) * width, AREA - 4 - base[cell]);
      ink.lineTo((cell / cells) * width, AREA - 4 - base[cell]);
      base[cell] += (kinds[kind][cell] / most) * high;
    }
    ink.fill();
  }
  stripes(ink, width, 0, AREA);
  areaMarks(one, ink, width);
  const label = make("span", { class: "lane" }, `up to ${group(Math.min(most, one.lanes.length))} at a time`);
  label.style.top = NARROW.matches ? "1px" : `${AREA / 2 - 8}px`;
  one.labels.push(label);
  one.plot.append(label);
}

function areaMarks(one, ink, width) {
  const seen = new Set();
  for (const bar of one.lanes.flatMap((lane) => lane.bars)) {
    if (!["trouble", "fault", "published", "outcome"].includes(bar.kind)) continue;
    const x = place(bar.start, width), cell = `${bar.kind} ${Math.round(x / 7)}`;
    if (x < 0 || x > width || seen.has(cell)) continue;
    seen.add(cell);
    mark(ink, MARK[bar.kind][1], MARK[bar.kind][0], x, 8, 4);
  }
}

function watchPointer(one) {
  let from = null;
  const band = make("div", { class: "band", hidden: "" });
  one.plot.append(band);
  const at = (event) => event.clientX - one.canvas.getBoundingClientRect().left;
  const time = (x) => shown[0] + (x / one.canvas.clientWidth) * (shown[1] - shown[0]);
  one.canvas.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button) return;
    from = at(event);
    one.canvas.setPointerCapture(event.pointerId);
  });
  one.canvas.addEventListener("pointermove", (event) => {
    const x = at(event);
    if (from !== null && Math.abs(x - from) > 4) {
      band.hidden = false;
      band.style.left = `${one.canvas.offsetLeft + Math.min(x, from)}px`;
      band.style.width = `${Math.abs(x - from)}px`;
      hideTip();
      return;
    }
    const lines = one.open ? barTip(one, event, time(x), time) : areaTip(one, time(x));
    if (lines) showTip(event, lines);
    else hideTip();
  });
  one.canvas.addEventListener("pointerup", (event) => {
    const x = at(event);
    band.hidden = true;
    if (from !== null && Math.abs(x - from) > 4) zoom(Math.min(time(x), time(from)), Math.max(time(x), time(from)));
    from = null;
  });
  one.canvas.addEventListener("pointerleave", hideTip);
  one.canvas.addEventListener("dblclick", () => zoom(...whole));
}

function barTip(one, event, ms, time) {
  const row = rowHeight(one), box = one.canvas.getBoundingClientRect();
  const lane = one.lanes[Math.floor((event.clientY - box.top - 3) / row)];
  if (!lane) return null;
  const near = time(6) - time(0);
  let best = null, least = Infinity;
  lane.bars.forEach((bar, number) => {
    const off = Math.max(0, bar.start - ms, ms - bar.start - bar.took);
    if (off > near) return;
    const score = off - (bar.kind in MARK ? near : 0) - number * 1e-6 * near;
    if (score < least) [best, least] = [bar, score];
  });
  if (!best) return [lane.name, utc(ms)];
  const many = best.num > 1 ? ` × ${group(best.num)}` : "";
  const long = best.took ? ` · ${lasting(best.num > 1 ? best.busy : best.took)}` : "";
  return [`${best.label}${many}${long}`, best.text, `${lane.name}`, `${elapsed(best.start, 10)} · ${utc(best.start)}`];
}

function areaTip(one, ms) {
  if (!one.area) return null;
  const cell = Math.floor((ms - shown[0]) / one.area.grain);
  const rows = one.area.order.filter((kind) => one.area.kinds[kind][cell] > 0.05);
  const label = (kind) => run.kinds.find(([name]) => name === kind)[1];
  return [`${one.name} at ${elapsed(ms)}`, ...rows.map((kind) => `${figure(one.area.kinds[kind][cell])}: ${label(kind)}`), utc(ms)];
}
setUp();

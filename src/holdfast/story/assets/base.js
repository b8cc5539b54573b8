// What all parts of the page use: the run, words for times, colours, elements made without markup, one tooltip.

const run = JSON.parse(document.getElementById("run").textContent);
const byId = (id) => document.getElementById(id);
const NARROW = window.matchMedia("(max-width: 680px)");
const DARK = window.matchMedia("(prefers-color-scheme: dark)");

// Bars: [colour, thickness, place in the row]; marks: [colour, shape].
const BAR = {
  parked: ["--pale", 0.5, 0.5], ready: ["--sky", 0.62, 0.5], running: ["--green", 0.62, 0.5], stopping: ["--orange", 0.62, 0.5],
  done: ["--grey", 0.62, 0.5], silent: ["--red", 0.12, 0.5], unhealthy: ["--red", 0.62, 0.5], store_away: ["--red", 0.16, 0.9],
  publishing: ["--sky", 0.42, 0.5], serving: ["--blue", 0.5, 0.5], updating: ["--sky", 0.5, 0.5], lagging: ["--orange", 0.5, 0.5], quarantined: ["--red", 0.5, 0.5],
  gone: ["--red", 0.2, 0.5], unknown: ["--pale", 0.3, 0.5],
  load: ["--pink", 0.78, 0.5], engine: ["--grey", 0.3, 0.5], hold: ["--sky", 0.42, 0.5], announced: ["--pale", 0.42, 0.5],
};
const MARK = {
  claimed: ["--blue", "flag"], published: ["--mark", "up"], acknowledged: ["--blue", "tick"], swept: ["--faint", "cross"],
  coordinator: ["--orange", "star"], round_proposed: ["--soft", "ring"], round_committed: ["--mark", "disc"],
  round_running: ["--green", "disc"], outcome: ["--mark", "square"], fault: ["--red", "bolt"], recovered: ["--green", "plus"],
  trouble: ["--red", "diamond"], note: ["--soft", "ring"], measured: ["--soft", "dot"],
};
const PHASES = {
  noticed: ["--red", "last sign of life → found lost"], stopped: ["--orange", "→ every node said yes"],
  committed: ["--grey", "→ committed"], started: ["--green", "→ workers run"], trains: ["--sky", "→ next version published"],
};

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  colours = {};
  const names = "ink soft faint line grid wash card shade green sky blue orange red pink yellow grey pale mark";
  for (const name of names.split(" ")) colours[`--${name}`] = style.getPropertyValue(`--${name}`).trim();
}

const pad = (n) => String(n).padStart(2, "0");
const group = (n) => String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, "\u202f");

/** Milliseconds since the run began, as a clock: 12.3 s, 4:05, 1:02:03, 2 d 03:00. */
function elapsed(ms, grainMs = 1000) {
  const sign = ms < 0 ? "−" : "";
  ms = Math.abs(ms);
  const digits = grainMs >= 1000 ? 0 : grainMs >= 100 ? 1 : grainMs >= 10 ? 2 : 3;
  const s = digits ? Math.floor(ms) / 1000 : Math.floor(ms / 1000);
  const h = Math.floor(s / 3600), m = Math.floor((s % 3600) / 60), rest = (s % 60).toFixed(digits);
  const seconds = rest.padStart(digits ? digits + 3 : 2, "0");
  if (h >= 48) return `${sign}${Math.floor(h / 24)} d ${pad(h % 24)}:${pad(m)}`;
  return h ? `${sign}${h}:${pad(m)}:${seconds}` : `${sign}${m}:${seconds}`;
}

/** How long: 4 ms, 1.38 s, 2 min 5 s, 3 h 20 min. */
function lasting(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 9995) return `${(ms / 1000).toFixed(2)} s`;
  if (ms < 59950) return `${(ms / 1000).toFixed(1)} s`;
  const s = Math.round(ms / 1000);
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

const utc = (ms) => `${new Date(run.start_ms + ms).toISOString().slice(0, 23).replace("T", " ")} UTC`;

function figure(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(1).replace("e+", "e");
  if (size >= 1000) return group(value);
  return String(Number(value.toPrecision(3)));
}

const STEPS_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200,
  10800, 21600, 43200, 86400, 172800, 604800];

/** Where ticks stand between two times (ms), so that at most `most` do; and how far apart. */
function timeTicks(fromMs, toMs, most) {
  const stepMs = 1000 * (STEPS_S.find((step) => (toMs - fromMs) / 1000 / step <= most) ?? 604800);
  const ticks = [];
  for (let at = Math.ceil(fromMs / stepMs) * stepMs; at <= toMs && ticks.length < 100; at += stepMs) ticks.push(at);
  return [ticks, stepMs];
}

function niceTicks(low, high, most) {
  const raw = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((s) => s >= raw * 0.999) ?? power * 10;
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9 && ticks.length < 20; n++) ticks.push(n * step);
  return ticks;
}

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function draw(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const tip = byId("tip");
/** Show lines of text at a pointer; the first line is the heading. */
function showTip(event, lines) {
  tip.replaceChildren(make("b", {}, lines[0]), ...lines.slice(1).filter(Boolean).map((line) => make("div", {}, line)));
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 14 + box.width > window.innerWidth - 8 ? event.clientX - box.width - 12 : event.clientX + 14;
  const top = event.clientY + 16 + box.height > window.innerHeight - 8 ? event.clientY - box.height - 12 : event.clientY + 16;
  tip.style.left = `${Math.max(8, Math.min(left, window.innerWidth - box.width - 8))}px`;
  tip.style.top = `${Math.max(8, top)}px`;
  tip.style.visibility = "visible";
}
function hideTip() { tip.style.visibility = "hidden"; }

/** Call `redraw` whenever what is drawn would look otherwise: another width, another theme. */
function onChange(element, redraw) {
  let width = -1;
  new ResizeObserver(() => {
    if (element.clientWidth === width) return;
    width = element.clientWidth;
    redraw();
  }).observe(element);
  DARK.addEventListener("change", () => { readColours(); redraw(); });
}
readColours();

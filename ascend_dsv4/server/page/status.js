// SPDX-License-Identifier: Apache-2.0
// The status page: asks /status once a second and shows the answer. No dependency, no build step.

const HISTORY_SECONDS = 120;
const POLL_MS = 1000;
const HIDDEN_POLL_MS = 10_000; // nobody looks, but the title of the tab still tells the state
const ANSWER_TIMEOUT_MS = 5000;
const LONGEST_BACKOFF_MS = 16_000;
const SVG = "http://www.w3.org/2000/svg";
const NOTHING = "–";

// Not from the document's own address: that one may carry a user name, and fetch() refuses such addresses.
const BASE = location.origin + location.pathname.replace(/[^/]*$/, "");

const GROUP_MEANINGS = {
  window: "sliding window",
  cmp4: "compressed 4 : 1",
  cmp128: "compressed 128 : 1",
  state: "compressor state",
};
const NOTICES = {
  draining: { kind: "warn", title: "Draining.", text: "Running requests finish; new ones are refused." },
  failed: { kind: "bad", title: "The engine failed.", text: "The server answers, but runs no requests. Its log has the reason." },
};

function byId(id) {
  return document.getElementById(id);
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text; // an unchanged node keeps the reader's selection
}

/* ---- numbers as text ---- */

const grouped = [0, 1, 2].map(
  (digits) => new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }),
);
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 3 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

function integer(value) {
  return grouped[0].format(value);
}

function rate(value) {
  return value < 1e7 ? grouped[value < 1000 ? 1 : 0].format(value) : compact.format(value);
}

/** Milliseconds as text of at most seven characters up to a quarter of an hour, in the unit that fits. */
function latency(value) {
  const [part, unit] = value < 1000 ? [value, "ms"] : [value / 1000, "s"];
  return `${grouped[part < 10 ? 2 : part < 100 ? 1 : 0].format(part)} ${unit}`;
}

function seconds(value) {
  return `${integer(value)} s`;
}

function duration(value) {
  const whole = Math.floor(value);
  const parts = [Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60, whole % 60];
  const time = parts.map((part) => String(part).padStart(2, "0")).join(":");
  const days = Math.floor(whole / 86_400);
  return days ? `${integer(days)} d ${time}` : time;
}

function limit(value) {
  return value === null ? "no limit" : integer(value);
}

function ofLimit(value) {
  return value === null ? "no limit" : `of ${integer(value)}`;
}

const FORMATS = { text: String, integer, rate, latency, seconds, duration, limit, "of-limit": ofLimit };
const SHOWS_NULL = new Set(["limit", "of-limit"]);

function axis(value) {
  return value < 10_000 ? plain.format(value) : compact.format(value);
}

/* ---- charts ---- */

function svgNode(parent, name, attributes, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  parent.append(node);
  return node;
}

/** Smallest round number from `value` up whose half is round too, so that the middle rule has a short label. */
function ceiling(value, least) {
  const wanted = Math.max(value, least);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((top) => top >= wanted * (1 - 1e-9));
}

const MARGIN = { left: 44, right: 6, top: 8, bottom: 20 };

/** Curves of the last two minutes, the newest sample at the right edge; all charts share one time cursor. */
class Chart {
  static all = [];
  static cursorAge = null; // seconds before the newest sample

  /** series: [{name, kind (a CSS class), value: sample → number}]; least: the smallest top of the vertical axis. */
  constructor(host, series, format, least) {
    Object.assign(this, { host, series, format, least, samples: [], top: least });
    this.svg = svgNode(host, "svg", { "aria-hidden": "true" });
    this.rules = [0, 0.5, 1].map((part) => ({
      part,
      line: svgNode(this.svg, "line", { class: part ? "rule" : "base" }),
      label: svgNode(this.svg, "text", { "text-anchor": "end", x: MARGIN.left - 8 }),
    }));
    this.ticks = [[120, "−2 min", "start"], [60, "−1 min", "middle"], [0, "now", "end"]].map(([age, text, anchor]) => ({
      age,
      label: svgNode(this.svg, "text", { "text-anchor": anchor }, text),
    }));
    this.curves = series.map(({ kind }) => ({
      area: svgNode(this.svg, "path", { class: `area ${kind}` }),
      line: svgNode(this.svg, "path", { class: `curve ${kind}` }),
    }));
    this.cursor = svgNode(this.svg, "line", { class: "cursor" });
    this.dots = series.map(({ kind }) => svgNode(this.svg, "circle", { class: `dot ${kind}`, r: 4 }));
    this.readout = document.createElement("div");
    this.readout.className = "readout number";
    host.append(this.readout);
    this.listen();
    Chart.all.push(this);
  }

  listen() {
    new ResizeObserver(() => this.draw()).observe(this.host);
    this.host.addEventListener("pointermove", (event) => Chart.moveCursor(this.ageAt(event.clientX)));
    this.host.addEventListener("pointerdown", (event) => Chart.moveCursor(this.ageAt(event.clientX)));
    this.host.addEventListener("pointerleave", () => Chart.moveCursor(null));
    this.host.addEventListener("blur", () => Chart.moveCursor(null));
    this.host.addEventListener("keydown", (event) => {
      const age = Chart.cursorAge ?? 0;
      const moves = { ArrowLeft: age + 1, ArrowRight: age - 1, PageUp: age + 10, PageDown: age - 10, Home: Infinity, End: 0, Escape: null };
      if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      Chart.moveCursor(moves[event.key]);
    });
  }

  static moveCursor(age) {
    Chart.cursorAge = age;
    for (const chart of Chart.all) chart.drawCursor();
  }

  ageAt(clientX) {
    const part = (clientX - this.host.getBoundingClientRect().left - MARGIN.left) / this.plotWidth;
    return Math.round((1 - part) * HISTORY_SECONDS);
  }

  x(age) {
    return MARGIN.left + this.plotWidth * (1 - age / HISTORY_SECONDS);
  }

  y(value) {
    return MARGIN.top + this.plotHeight * (1 - value / this.top);
  }

  update(samples) {
    this.samples = samples.slice(-HISTORY_SECONDS);
    this.draw();
  }

  draw() {
    const { width, height } = this.host.getBoundingClientRect();
    this.plotWidth = Math.max(width - MARGIN.left - MARGIN.right, 1);
    this.plotHeight = height - MARGIN.top - MARGIN.bottom;
    const values = this.samples.flatMap((sample) => this.series.map((series) => series.value(sample)));
    this.top = ceiling(Math.max(0, ...values), this.least);
    this.drawAxes(height);
    this.series.forEach((series, index) => this.drawCurve(this.curves[index], this.samples.map(series.value)));
    this.drawCursor();
  }

  drawAxes(height) {
    for (const { part, line, label } of this.rules) {
      const y = Math.round(this.y(part * this.top)) + 0.5;
      for (const [key, value] of Object.entries({ x1: this.x(HISTORY_SECONDS), x2: this.x(0), y1: y, y2: y })) line.setAttribute(key, value);
      label.setAttribute("y", y + 4);
      setText(label, axis(part * this.top));
    }
    for (const { age, label } of this.ticks) {
      label.setAttribute("x", this.x(age));
      label.setAttribute("y", height - 4);
    }
  }

  drawCurve({ area, line }, values) {
    const points = values.map((value, index) => `${this.x(values.length - 1 - index).toFixed(1)} ${this.y(value).toFixed(1)}`);
    const path = points.length ? `M${points.join("L")}` : "";
    line.setAttribute("d", path && `${path}h0.1`); // a single sample shows as a point
    area.setAttribute("d", path && `${path}V${this.y(0)}H${this.x(values.length - 1)}Z`);
  }

  drawCursor() {
    const newest = this.samples.length - 1;
    const shown = Chart.cursorAge !== null && newest >= 0;
    for (const node of [this.cursor, this.readout, ...this.dots]) node.toggleAttribute("hidden", !shown);
    const age = shown ? Math.min(Math.max(Chart.cursorAge, 0), newest) : 0;
    if (shown) Chart.cursorAge = age;
    const when = age ? `−${age} s` : "now";
    const lines = newest < 0 ? ["no data yet"] : this.series.map(({ name, value }) => `${this.format(value(this.samples[newest - age]))} ${name}`);
    this.host.setAttribute("aria-valuenow", String(-age));
    this.host.setAttribute("aria-valuetext", `${age ? `${age} seconds ago` : "now"}: ${lines.join(", ")}`);
    if (shown) this.placeCursor(age, `${when}\n${lines.join("\n")}`);
  }

  placeCursor(age, text) {
    const x = this.x(age);
    const sample = this.samples[this.samples.length - 1 - age];
    const ends = { x1: Math.round(x) + 0.5, x2: Math.round(x) + 0.5, y1: MARGIN.top, y2: this.y(0) };
    for (const [key, value] of Object.entries(ends)) this.cursor.setAttribute(key, value);
    this.series.forEach((series, index) => {
      this.dots[index].setAttribute("cx", x);
      this.dots[index].setAttribute("cy", this.y(series.value(sample)));
    });
    setText(this.readout, text);
    const left = x + 10 + this.readout.offsetWidth > this.x(0) ? x - 10 - this.readout.offsetWidth : x + 10;
    this.readout.style.transform = `translate(${Math.round(Math.max(left, 0))}px, ${MARGIN.top}px)`;
  }
}

const charts = [
  new Chart(byId("generation-chart"), [{ name: "tokens/s", kind: "generation", value: (sample) => sample.generation_tokens_per_second }], rate, 1),
  new Chart(byId("prompt-chart"), [{ name: "tokens/s", kind: "prompt", value: (sample) => sample.prompt_tokens_per_second }], rate, 1),
  new Chart(
    byId("requests-chart"),
    [
      { name: "running", kind: "running", value: (sample) => sample.running },
      { name: "waiting", kind: "waiting", value: (sample) => sample.waiting },
    ],
    integer,
    2,
  ),
];

/* ---- the rest of the page ---- */

const fields = Array.from(document.querySelectorAll("[data-field]"), (node) => {
  const format = node.dataset.format ?? "text";
  return { node, path: node.dataset.field.split("."), format: FORMATS[format], showsNull: SHOWS_NULL.has(format) };
});

function showFields(status) {
  for (const { node, path, format, showsNull } of fields) {
    const value = path.reduce((part, key) => part?.[key], status);
    setText(node, value === undefined || (value === null && !showsNull) ? NOTHING : format(value));
  }
}

/** Fill a meter; without a limit it stays empty and says so. */
function showMeter(meter, used, total) {
  const share = total ? Math.min(used / total, 1) : 0;
  meter.setAttribute("aria-valuemax", String(total || Math.max(used, 1)));
  meter.setAttribute("aria-valuenow", String(used));
  meter.setAttribute("aria-valuetext", total === null ? `${integer(used)}, no limit` : `${integer(used)} of ${integer(total)}`);
  meter.querySelector(".fill").style.width = `${100 * share}%`;
}

const cacheRows = new Map();

function addCacheRow(group) {
  const row = byId("cache-template").content.firstElementChild.cloneNode(true);
  setText(row.querySelector(".cache-group"), group);
  setText(row.querySelector(".cache-meaning"), GROUP_MEANINGS[group] ?? "");
  row.querySelector(".meter").setAttribute("aria-label", `Cache blocks of ${group}`);
  byId("caches").append(row);
  cacheRows.set(group, row);
}

function showCaches(caches) {
  const groups = caches.map((cache) => cache.group);
  if (groups.join() !== [...cacheRows.keys()].join()) {
    byId("caches").replaceChildren();
    cacheRows.clear();
    groups.forEach(addCacheRow);
  }
  for (const cache of caches) {
    const row = cacheRows.get(cache.group);
    const percent = cache.num_blocks ? (100 * cache.used_blocks) / cache.num_blocks : 0;
    setText(row.querySelector(".cache-used"), integer(cache.used_blocks));
    setText(row.querySelector(".cache-limit"), `${ofLimit(cache.num_blocks)} blocks`);
    setText(row.querySelector(".cache-share"), `${grouped[1].format(percent)}%`);
    showMeter(row.querySelector(".meter"), cache.used_blocks, cache.num_blocks);
  }
}

/** A command for a POSIX shell: inside single quotes only the quote itself needs care. */
function exampleCommand(name) {
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const body = [
    "{",
    `    "model": ${JSON.stringify(name)},`,
    '    "messages": [{"role": "user", "content": "Hello"}],',
    '    "max_tokens": 64',
    "  }",
  ].join("\n");
  const lines = [`curl ${quote(`${BASE}v1/chat/completions`)}`, "-H 'Content-Type: application/json'", `-d ${quote(body)}`];
  return lines.join(" \\\n  ");
}

function showState(state, name) {
  const badge = byId("state");
  badge.dataset.state = state;
  setText(badge, state); // a live region: written when the state changes, and only then
  document.title = `${name} · ${state}`;
}

/** notice: {kind, title, text}, or undefined for none; retry: whether the page is trying to reach the server again. */
function showNotice(notice, retry = false) {
  byId("notice").hidden = !notice;
  byId("notice").dataset.kind = notice?.kind ?? "";
  setText(byId("notice-title"), notice?.title ?? "");
  setText(byId("notice-text"), notice?.text ?? "");
  byId("notice-countdown").hidden = !retry;
  byId("retry").hidden = !retry;
}

function showStatus(status) {
  showFields(status);
  showMeter(byId("running-meter"), status.requests.running, status.requests.max_running);
  showMeter(byId("waiting-meter"), status.requests.waiting, status.requests.max_waiting);
  showCaches(status.caches);
  setText(byId("finished-total"), integer(Object.values(status.requests.finished).reduce((sum, count) => sum + count, 0)));
  for (const chart of charts) chart.update(status.history);
  setText(byId("example"), exampleCommand(status.model.name));
  byId("copy").disabled = false;
  setText(byId("last-answer"), clock.format(new Date()));
  byId("figures").classList.remove("stale");
  showState(status.state, status.model.name);
  showNotice(NOTICES[status.state]);
}

/* ---- asking ---- */

let modelName = "ascend-dsv4"; // until the first answer
let answeredAt = null;
let failures = 0;
let nextPollAt = 0;
let timer = 0;
let asking = false;

/** An answer that never came or cannot be used; `state` is what the page calls the server then. */
class PollError extends Error {
  constructor(state, message) {
    super(message);
    this.state = state;
  }
}

async function fetchStatus() {
  let response;
  let status;
  try {
    response = await fetch(`${BASE}status`, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS) });
    status = await response.json();
  } catch (error) {
    if (error.name === "TimeoutError") throw new PollError("unreachable", `It did not answer within ${ANSWER_TIMEOUT_MS / 1000} s.`);
    if (!(error instanceof SyntaxError)) throw new PollError("unreachable", "It cannot be reached.");
    if (response.ok) throw new PollError("unreadable", "The answer to /status is not JSON.");
  }
  // A draining or failed server may answer with an error code and its figures all the same.
  if (typeof status?.state === "string") return status;
  if (!response.ok) throw new PollError("unreachable", `/status answers HTTP ${response.status}.`);
  throw new PollError("unreadable", "The answer to /status has no state: another program, or another version of this one?");
}

function showFailure(error) {
  const known = error instanceof PollError;
  if (!known) console.error(error);
  const state = known ? error.state : "unreadable";
  const reason = known ? error.message : `A value is not of the expected kind (${error.message}). Reload the page.`;
  const age = answeredAt ? ` Those below are from ${clock.format(answeredAt)}.` : "";
  byId("figures").classList.add("stale");
  showState(state, modelName);
  showNotice({ kind: "bad", title: "No figures from the server.", text: `${reason}${age}` }, true);
}

function showCountdown() {
  const left = Math.max(Math.ceil((nextPollAt - performance.now()) / 1000), 0);
  setText(byId("notice-countdown"), asking || !left ? "Trying now." : `Next try in ${left} s.`);
}

function schedule(delay) {
  clearTimeout(timer);
  nextPollAt = performance.now() + delay;
  timer = setTimeout(poll, delay);
}

async function poll() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  const started = performance.now();
  try {
    const status = await fetchStatus();
    showStatus(status);
    modelName = status.model.name;
    answeredAt = new Date();
    failures = 0;
  } catch (error) {
    failures += 1;
    showFailure(error);
  }
  asking = false;
  const interval = document.hidden ? HIDDEN_POLL_MS : POLL_MS;
  const backoff = Math.min(POLL_MS * 2 ** (failures - 1), LONGEST_BACKOFF_MS);
  schedule(failures ? backoff : Math.max(interval - (performance.now() - started), interval / 4));
  showCountdown();
}

async function copyExample() {
  const text = byId("example").textContent;
  let copied = true;
  try {
    await navigator.clipboard.writeText(text); // there only on https and on this machine
  } catch {
    getSelection().selectAllChildren(byId("example"));
    copied = document.execCommand("copy");
  }
  setText(byId("copy-result"), copied ? "Copied" : "Selected: press Ctrl+C");
  setTimeout(() => setText(byId("copy-result"), ""), 3000);
}

byId("copy").addEventListener("click", copyExample);
byId("retry").addEventListener("click", poll);
addEventListener("online", poll);
document.addEventListener("visibilitychange", () => document.hidden || poll());
setInterval(showCountdown, 500);
poll();

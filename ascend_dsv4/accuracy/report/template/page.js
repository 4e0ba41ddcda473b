// SPDX-License-Identifier: Apache-2.0
// Details behind the tables of a comparison: cells and nodes on demand, a cursor over the curves, copying, filtering.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const MARKS = { pass: "✓", fail: "✗", refused: "⊘", noted: "·", error: "!" };
const WITHIN_BINS = 6; // the first bins hold what is within its limit
const WIDTH = 96;
const HEIGHT = 24;
const DECADES = [-3, 1.3]; // that a chart of positions shows
const CURVE = { width: 1200, left: 46, right: 12, top: 26, bottom: 250 }; // as the curves are drawn
const ROWS_AT_ONCE = 200;
const grouped = new Intl.NumberFormat("en");

/** An element; children are nodes or texts, which are never parsed. */
function node(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function svgNode(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/* ---- copying ---- */

async function copy(code, button) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code);
    copied = document.execCommand("copy"); // for pages from a file
  }
  button.textContent = copied ? "Copied" : "Ctrl+C";
  setTimeout(() => (button.textContent = "Copy"), 2500);
}

function addCopyButtons(root) {
  for (const box of root.querySelectorAll(".command:not(.with-copy)")) {
    const button = node("button", { type: "button", class: "copy", "aria-live": "polite" }, "Copy");
    button.addEventListener("click", () => copy(box.querySelector("code"), button));
    box.classList.add("with-copy");
    box.append(button);
  }
}

function command(text) {
  return node("div", { class: "command" }, node("pre", { tabindex: "0" }, node("code", {}, text)));
}

/* ---- small charts ---- */

function bars(kind, list, limit, label) {
  const drawn = svgNode("svg", { class: `small ${kind}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  for (const { left, wide, tall, beyond } of list) {
    drawn.append(svgNode("path", { class: beyond ? "beyond" : "within", d: `M${left} ${HEIGHT}v${-tall}h${wide}V${HEIGHT}z` }));
  }
  drawn.append(svgNode("path", { class: "limit", d: limit }));
  return drawn;
}

function histogramChart(counts) {
  const most = Math.log1p(Math.max(...counts));
  const step = WIDTH / counts.length;
  const list = counts
    .map((count, i) => ({ count, left: i * step + 0.5, wide: step - 1, tall: 2 + ((HEIGHT - 2) * Math.log1p(count)) / most, beyond: i >= WITHIN_BINS }))
    .filter(({ count }) => count);
  return bars("histogram", list, `M${step * WITHIN_BINS} 0V${HEIGHT}`, "elements by error over limit");
}

/** Parts are ratios; null is one that is not finite. */
function positionChart(parts) {
  const step = WIDTH / parts.length;
  const share = (ratio) => (Math.log10(Math.max(ratio, 1e-9)) - DECADES[0]) / (DECADES[1] - DECADES[0]);
  const list = parts
    .map((ratio, i) => ({ ratio, left: i * step, wide: step - 0.5, beyond: ratio === null || ratio > 1, tall: 1 + (HEIGHT - 1) * (ratio === null ? 1 : Math.min(Math.max(share(ratio), 0), 1)) }))
    .filter(({ ratio }) => ratio !== 0);
  const at = HEIGHT - 1 - (HEIGHT - 1) * share(1);
  return bars("position", list, `M0 ${at}H${WIDTH}`, "largest error over limit along the first axis");
}

/* ---- details ---- */

const dialog = document.getElementById("detail");

function panel(title, ...children) {
  return node("section", { class: "panel" }, node("h2", {}, title), ...children);
}

function figure(chart, caption) {
  return node("figure", {}, chart, node("figcaption", {}, caption));
}

function binTable(counts) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  const most = Math.log1p(Math.max(...counts));
  const table = node("div", { class: "bins" });
  counts.forEach((count, i) => {
    if (i === WITHIN_BINS) table.append(node("span", { class: "edge" }, "limit"));
    const bar = node("span", { class: i < WITHIN_BINS ? "bar" : "bar beyond" });
    bar.style.width = count ? `${2 + (98 * Math.log1p(count)) / most}%` : "0";
    const share = total ? ((100 * count) / total).toPrecision(3) : 0;
    const about = count ? `${grouped.format(count)} (${share} %)` : "–";
    table.append(node("span", {}, DATA.bins[i]), bar, node("span", { class: "number" }, about));
  });
  return table;
}

function keptCard(kept, heading = "") {
  const title = node("h3", {}, node("span", { class: "mark" }, MARKS[kept.status]), heading || kept.name, node("span", { class: "ratio" }, kept.status === "refused" ? "refused" : `${kept.ratio} ×`));
  const card = node("div", { class: `card ${kept.status}` }, title);
  if (heading) card.append(node("p", { class: "about" }, kept.name));
  const said = kept.reason || (kept.status === "pass" ? "within every limit" : "");
  card.append(node("p", { class: "reason" }, said, node("span", { class: "meaning" }, ` ${kept.check ? `check: ${kept.check}, ` : ""}${grouped.format(kept.elements)} elements`)));
  if (kept.worst) {
    const names = ["worst at", "actual", "golden"];
    card.append(node("dl", { class: "element" }, ...kept.worst.map((text, i) => node("div", {}, node("dt", {}, names[i]), node("dd", {}, text)))));
  }
  if (kept.figures.length) {
    card.append(node("dl", { class: "figures" }, ...kept.figures.map(([name, text]) => node("div", {}, node("dt", {}, name), node("dd", { class: "number" }, text)))));
  }
  const charts = node("div", { class: "charts" });
  if (kept.histogram.some(Boolean)) charts.append(figure(histogramChart(kept.histogram), "error over limit"));
  if (kept.position.length) charts.append(figure(positionChart(kept.position), "along the first axis"));
  if (charts.childElementCount) card.append(charts);
  if (kept.command) card.append(command(kept.command));
  return card;
}

function resultRows(cell) {
  const body = node("tbody");
  const add = (from) => {
    for (const [status, name, kind, output, golden, ratio, kept] of cell.rows.slice(from, from + ROWS_AT_ONCE)) {
      const mark = node("span", { class: `mark status ${status}`, title: status }, MARKS[status]);
      const first = node("th", { scope: "row" }, mark, ` ${name}`);
      body.append(node("tr", {}, first, node("td", {}, kind), node("td", {}, output), node("td", {}, golden), node("td", { class: "number" }, ratio)));
      if (kept >= 0) first.append(" ", node("span", { class: "meaning" }, `(${kept + 1} above)`));
    }
  };
  add(0);
  const head = node("tr", {}, ...["Case", "Kind", "Output", "Golden", "Ratio"].map((text, i) => node("th", { scope: "col", class: i === 4 ? "number" : "" }, text)));
  const box = node("div", { class: "scroll", tabindex: "0" }, node("table", { class: "plain" }, node("thead", {}, head), body));
  if (cell.rows.length <= ROWS_AT_ONCE) return [box];
  const more = node("button", { type: "button" }, `Show all ${grouped.format(cell.rows.length)}`);
  more.addEventListener("click", () => {
    for (let from = ROWS_AT_ONCE; from < cell.rows.length; from += ROWS_AT_ONCE) add(from);
    more.remove();
  });
  return [box, more];
}

function cellDetails(cell) {
  const parts = [];
  for (const [name, message, text] of cell.errors) {
    parts.push(panel(`Broke off: ${name}`, node("pre", { class: "message", tabindex: "0" }, message.join("\n")), ...(text ? [command(text)] : [])));
  }
  if (cell.histogram.some(Boolean)) parts.push(panel("Elements by error over limit", binTable(cell.histogram)));
  if (cell.position.length) parts.push(panel("Largest error along the first axis", positionChart(cell.position), node("p", { class: "meaning" }, "from its begin to its end; the line is the limit, the scale logarithmic")));
  if (cell.kept.length) parts.push(panel("Worst results", node("div", { class: "cards" }, ...cell.kept.map((kept, i) => keptCard(kept, `${i + 1}`)))));
  if (cell.rows.length) parts.push(panel(`All ${grouped.format(cell.rows.length)} outputs`, ...resultRows(cell)));
  return parts;
}

function nodeDetails(entry) {
  const names = ["Introduced: on the reference's inputs", "Total: the candidate's own run"];
  return [node("div", { class: "cards" }, ...entry.kept.map((kept, i) => keptCard(kept, names[i])))];
}

function show(entry, details) {
  const close = node("button", { type: "button" }, "Close");
  close.addEventListener("click", () => dialog.close());
  const title = node("div", {}, node("h2", { id: "detail-title" }, entry.title), node("p", { class: "meaning" }, entry.about));
  dialog.replaceChildren(node("div", { class: "detail-head" }, title, close), node("div", { class: "detail-body" }, ...details(entry)));
  addCopyButtons(dialog);
  dialog.showModal();
  dialog.scrollTop = 0;
}

/** Opens what an address ends in: #cell-3, #node-0. */
function openAddressed() {
  const found = /^#(cell|node)-(\d+)$/.exec(location.hash);
  if (dialog.open) dialog.close();
  const entry = found && DATA[`${found[1]}s`][Number(found[2])];
  if (entry) show(entry, found[1] === "cell" ? cellDetails : nodeDetails);
}

dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
for (const kind of ["cell", "node"]) {
  for (const button of document.querySelectorAll(`button[data-${kind}]`)) {
    button.addEventListener("click", () => {
      history.replaceState(null, "", `#${kind}-${button.dataset[kind]}`);
      openAddressed();
    });
  }
}
addEventListener("hashchange", openAddressed);

/* ---- curves ---- */

function listenToCurve(host) {
  const points = DATA.steps[host.dataset.step];
  const svg = host.querySelector("svg");
  const readout = host.nextElementSibling;
  const pace = (CURVE.width - CURVE.left - CURVE.right) / points.length;
  const cursor = svgNode("path", { class: "cursor" });
  let at = 0;
  svg.append(cursor);
  const first = svg.querySelector(".first"); // on a narrow screen the box scrolls: begin where it matters
  if (first) host.scrollLeft = (first.getBBox().x / CURVE.width) * host.scrollWidth - host.clientWidth / 2;
  const move = (wanted) => {
    at = Math.min(Math.max(wanted, 0), points.length - 1);
    const [graph, name, introduced, total, state] = points[at];
    const across = CURVE.left + pace * (at + 0.5);
    cursor.setAttribute("d", `M${across} ${CURVE.top}V${CURVE.bottom}`);
    readout.textContent = `${graph} ${name}: introduced ${introduced}, total ${total} × limit, ${state}`;
    host.setAttribute("aria-valuenow", at);
    host.setAttribute("aria-valuetext", readout.textContent);
  };
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    move(Math.floor((((event.clientX - box.left) / box.width) * CURVE.width - CURVE.left) / pace));
  };
  host.addEventListener("pointermove", follow);
  host.addEventListener("pointerdown", follow);
  host.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 20, PageDown: at + 20, Home: 0, End: points.length - 1 };
    if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    move(moves[event.key]);
  });
}

/* ---- filters of the matrix ---- */

function filterRows() {
  const wanted = document.getElementById("find").value.trim().toLowerCase();
  const onlyGrave = document.getElementById("grave").checked;
  for (const row of document.querySelectorAll(".matrix tbody tr")) {
    row.hidden = !row.dataset.op.toLowerCase().includes(wanted) || (onlyGrave && row.dataset.grave !== "yes");
  }
}

for (const host of document.querySelectorAll(".curve")) listenToCurve(host);
for (const filters of document.querySelectorAll(".filters")) {
  filters.hidden = false;
  filters.addEventListener("input", filterRows);
}
addCopyButtons(document);
openAddressed();

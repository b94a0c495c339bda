// Draws the token × layer map on a canvas and tells which cell is pointed at or chosen with the keys. Colour and
// hatching stand for the strongest module, opacity for its weight or margin.

import { element } from "./dom.js";
import { visible } from "./format.js";
import { colour, mark, pattern } from "./palette.js";
import { margin } from "./traces.js";

const ROW = 20;
const HEAD = 20;
const LABEL = { narrow: 84, wide: 130 };

/** The map. `onCell(token, layer, box, how)` is called with the cell in question; `how` is "point" or "key". */
export function heatCanvas(onCell, onLeave) {
  const canvas = element("canvas", { "aria-hidden": "true" });
  const node = element(
    "div",
    {
      class: "heat",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "heat map",
      "aria-label":
        "Map of tokens by layers. Arrow keys move, Home and End go to the first and last layer, " +
        "Page Up and Page Down ten tokens.",
    },
    canvas,
  );
  const map = { node, canvas, rows: [], layers: 0, at: { token: 0, layer: 0 }, size: null, onCell, onLeave };
  node.addEventListener("keydown", (event) => move(map, event));
  node.addEventListener("focus", () => tell(map));
  node.addEventListener("blur", () => (paint(map), onLeave()));
  canvas.addEventListener("mousemove", (event) => point(map, event));
  canvas.addEventListener("mouseleave", onLeave);
  node.addEventListener("scroll", () => requestAnimationFrame(() => paint(map)));
  new ResizeObserver(() => paint(map)).observe(node);
  return { node, show: (data) => show(map, data), most: () => map.most, repaint: () => paint(map) };
}

/** `rows` has `{ token, text, cells }`; a cell is a list of picks, strongest first. */
function show(map, { rows, layers, opacity }) {
  Object.assign(map, { rows, layers, opacity });
  // The strongest cell is opaque, so that small weights can be told apart too.
  map.most = Math.max(1e-6, ...rows.flatMap((row) => row.cells.map((picks) => valueOf(map, picks))));
  map.at.token = Math.min(map.at.token, Math.max(0, rows.length - 1));
  map.at.layer = Math.min(map.at.layer, Math.max(0, layers - 1));
  paint(map);
}

function measure(map) {
  const width = map.node.clientWidth - 4;
  const label = width < 560 ? LABEL.narrow : LABEL.wide;
  const cell = Math.max(9, Math.min(34, Math.floor((width - label) / Math.max(1, map.layers))));
  return { label, cell, width: label + cell * map.layers, height: HEAD + ROW * map.rows.length };
}

function paint(map) {
  if (!map.node.isConnected || map.node.clientWidth === 0) return;
  const size = (map.size = measure(map));
  const ratio = devicePixelRatio || 1;
  map.canvas.width = size.width * ratio;
  map.canvas.height = size.height * ratio;
  map.canvas.style.width = `${size.width}px`;
  map.canvas.style.height = `${size.height}px`;
  const pen = map.canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(map.node);
  pen.ink = style.color;
  pen.ground = parts(getComputedStyle(document.body).backgroundColor);
  pen.font = `12px ${style.fontFamily}`;
  pen.textBaseline = "middle";
  const colours = new Map();
  map.rows.forEach((row, at) => paintRow(map, pen, row, at, colours));
  heads(map, pen);
  if (document.activeElement === map.node) cursor(map, pen);
}

/** The numbers of the layers; they stay in sight when the rows are scrolled. */
function heads(map, pen) {
  const { label, cell, width } = map.size;
  const top = map.node.scrollTop;
  pen.fillStyle = `rgb(${pen.ground.join(" ")})`;
  pen.fillRect(0, top, width, HEAD);
  pen.fillStyle = pen.ink;
  pen.textAlign = "center";
  const every = Math.max(1, Math.ceil(22 / cell));
  for (let layer = 0; layer < map.layers; layer += every)
    pen.fillText(String(layer), label + (layer + 0.5) * cell, top + HEAD / 2);
  pen.textAlign = "left";
  pen.fillText("layer", 2, top + HEAD / 2);
}

function paintRow(map, pen, row, at, colours) {
  const { label, cell } = map.size;
  const top = HEAD + at * ROW;
  pen.fillStyle = pen.ink;
  pen.textAlign = "left";
  pen.fillText(clip(pen, visible(row.text), label - 10), 2, top + ROW / 2);
  row.cells.forEach((picks, layer) => {
    if (picks.length === 0) return;
    const name = picks[0].name;
    if (!colours.has(name)) colours.set(name, colour(name));
    paintCell(pen, label + layer * cell, top, cell, colours.get(name), name, valueOf(map, picks) / map.most);
  });
}

function valueOf(map, picks) {
  return map.opacity === "margin" ? margin(picks) : Math.abs(picks[0]?.weight ?? 0);
}

function parts(colour) {
  return colour
    .match(/[\d.]+/g)
    .slice(0, 3)
    .map(Number);
}

/** Black or white, whichever reads better on a colour over the ground. */
function inkOn(pen, fill, alpha) {
  const mixed = parts(fill).map((part, at) => part * alpha + pen.ground[at] * (1 - alpha));
  return 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2] > 140 ? "#000" : "#fff";
}

function paintCell(pen, left, top, width, fill, name, value) {
  const alpha = Math.max(0.12, Math.min(1, value));
  pen.globalAlpha = alpha;
  pen.fillStyle = fill;
  pen.fillRect(left + 0.5, top + 0.5, width - 1, ROW - 1);
  pen.globalAlpha = 1;
  if (width >= 24) {
    pen.fillStyle = inkOn(pen, fill, alpha);
    pen.textAlign = "center";
    pen.fillText(mark(name).code, left + width / 2, top + ROW / 2 + 1);
  } else {
    hatch(pen, left, top, width, pattern(name));
  }
}

/** Line styles in a small cell: none, a diagonal, a dot, a cross line. */
function hatch(pen, left, top, width, style) {
  if (style === 0) return;
  pen.strokeStyle = pen.fillStyle = pen.ink;
  pen.globalAlpha = 0.55;
  pen.lineWidth = 1;
  pen.beginPath();
  if (style === 1) (pen.moveTo(left + 2, top + ROW - 3), pen.lineTo(left + width - 2, top + 3));
  if (style === 2) pen.fillRect(left + width / 2 - 1, top + ROW / 2 - 1, 2.5, 2.5);
  if (style === 3) (pen.moveTo(left + 2, top + ROW / 2), pen.lineTo(left + width - 2, top + ROW / 2));
  pen.stroke();
  pen.globalAlpha = 1;
}

function clip(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  const short = [...text];
  while (short.length > 1 && pen.measureText(`${short.join("")}…`).width > width) short.pop();
  return `${short.join("")}…`;
}

function cursor(map, pen) {
  const { label, cell } = map.size;
  pen.strokeStyle = pen.ink;
  pen.lineWidth = 2;
  pen.strokeRect(label + map.at.layer * cell, HEAD + map.at.token * ROW, cell, ROW);
}

/** The cell's place on the screen. */
function box(map, token, layer) {
  const { label, cell } = map.size;
  const canvas = map.canvas.getBoundingClientRect();
  return new DOMRect(canvas.left + label + layer * cell, canvas.top + HEAD + token * ROW, cell, ROW);
}

function tell(map) {
  paint(map);
  if (!map.rows.length || !map.size) return;
  const { token, layer } = map.at;
  const top = HEAD + token * ROW;
  const node = map.node;
  if (top < node.scrollTop + HEAD) node.scrollTop = top - HEAD;
  if (top + ROW > node.scrollTop + node.clientHeight) node.scrollTop = top + 2 * ROW - node.clientHeight;
  const left = map.size.label + layer * map.size.cell;
  if (left < node.scrollLeft) node.scrollLeft = left - map.size.label;
  if (left + map.size.cell > node.scrollLeft + node.clientWidth)
    node.scrollLeft = left + 2 * map.size.cell - node.clientWidth;
  map.onCell(token, layer, box(map, token, layer), "key");
}

function move(map, event) {
  const { token, layer } = map.at;
  const steps = {
    ArrowRight: [token, layer + 1],
    ArrowLeft: [token, layer - 1],
    ArrowDown: [token + 1, layer],
    ArrowUp: [token - 1, layer],
    Home: [event.ctrlKey ? 0 : token, 0],
    End: [event.ctrlKey ? Infinity : token, Infinity],
    PageDown: [token + 10, layer],
    PageUp: [token - 10, layer],
  };
  const to = steps[event.key];
  if (!to) return;
  event.preventDefault();
  map.at = { token: within(to[0], map.rows.length), layer: within(to[1], map.layers) };
  tell(map);
}

function within(value, length) {
  return Math.max(0, Math.min(length - 1, value));
}

function point(map, event) {
  const canvas = map.canvas.getBoundingClientRect();
  const layer = Math.floor((event.clientX - canvas.left - map.size.label) / map.size.cell);
  const token = Math.floor((event.clientY - canvas.top - HEAD) / ROW);
  if (layer < 0 || token < 0 || layer >= map.layers || token >= map.rows.length) return map.onLeave();
  map.onCell(token, layer, box(map, token, layer), "point");
}

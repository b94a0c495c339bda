// Plots of one metric of an experiment: intervals of each arm against the control around the zero line, and the
// interval over time.

import { element, svg } from "./dom.js";
import { moment, short } from "./format.js";
import { linear, ticks } from "./scale.js";

const LABEL = 118;
const ROW = 44;

function signed(value) {
  return `${value > 0 ? "+" : ""}${short(value)}`;
}

/** The range that holds zero and all values, with some room. */
function range(values) {
  const found = values.filter(Number.isFinite);
  const low = Math.min(0, ...found);
  const high = Math.max(0, ...found);
  const room = (high - low || 1) * 0.06;
  return [low - room, high + room];
}

/** Always-valid and fixed-horizon intervals of all arms of a metric. */
export function forestPlot(metric, control, width) {
  const rows = metric.comparisons;
  const height = rows.length * ROW + 34;
  const span = range(
    rows.flatMap((row) => [row.difference, ...(row.always_valid ?? []), ...(row.fixed_horizon ?? [])]),
  );
  const across = linear(span, [LABEL, width - 12]);
  const bottom = rows.length * ROW + 6;
  const label = `${metric.name} against ${control}: ${rows.map(words).join("; ")}`;
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, class: "forest", role: "img", "aria-label": label },
    axis(span, across, 4, bottom),
    rows.map((row, at) => intervals(row, across, at * ROW + ROW / 2 + 4)),
  );
}

function words(row) {
  const interval = row.always_valid
    ? `, always valid from ${signed(row.always_valid[0])} to ${signed(row.always_valid[1])}`
    : "";
  return `${row.arm} ${signed(row.difference)}${interval}`;
}

function axis(span, across, top, bottom) {
  const marks = ticks(...span, 5).map((value) => [
    svg("line", { x1: across(value), x2: across(value), y1: top, y2: bottom, class: "grid" }),
    svg("text", { x: across(value), y: bottom + 15, class: "tick middle" }, signed(value)),
  ]);
  return [marks, svg("line", { x1: across(0), x2: across(0), y1: top, y2: bottom, class: "zero" })];
}

function intervals(row, across, y) {
  const [text] = [row.arm.length > 15 ? `${row.arm.slice(0, 14)}…` : row.arm];
  return [
    svg("text", { x: 2, y: y + 4, class: "arm" }, text, svg("title", null, row.arm)),
    interval(row.always_valid, across, y - 6, "always"),
    interval(row.fixed_horizon, across, y + 6, "fixed"),
    svg("circle", { cx: across(row.difference), cy: y - 6, r: 4, class: "estimate" }),
    row.fixed_horizon && svg("circle", { cx: across(row.difference), cy: y + 6, r: 3, class: "estimate hollow" }),
  ];
}

function interval(ends, across, y, kind) {
  if (!ends) return null;
  const [left, right] = ends.map(across);
  return [
    svg("line", { x1: left, x2: right, y1: y, y2: y, class: `interval ${kind}` }),
    [left, right].map((x) => svg("line", { x1: x, x2: x, y1: y - 4, y2: y + 4, class: `interval ${kind}` })),
  ];
}

/** The key of the two kinds of interval. */
export function forestKey() {
  const entry = (kind, text) =>
    element(
      "li",
      null,
      svg(
        "svg",
        { viewBox: "0 0 24 8", class: "key-line", "aria-hidden": "true" },
        svg("line", { x1: 0, x2: 24, y1: 4, y2: 4, class: `interval ${kind}` }),
      ),
      text,
    );
  return element(
    "ul",
    { class: "series" },
    entry("always", "always valid: holds whenever you look"),
    entry("fixed", "fixed horizon: holds for one look at the end"),
  );
}

/** The always-valid interval of one arm over time, as a band with the difference as a line. */
export function historyPlot(points, arm, width) {
  const height = 150;
  const times = points.map((point) => point.at);
  const span = range(points.flatMap((point) => [point.low, point.high, point.difference]));
  const across = linear([Math.min(...times), Math.max(...times)], [52, width - 14]);
  const up = linear(span, [height - 26, 8]);
  const at = (key) => points.map((point) => `${across(point.at).toFixed(1)} ${up(point[key]).toFixed(1)}`);
  const band = `M${at("low").join("L")}L${at("high").reverse().join("L")}Z`;
  const last = points.at(-1);
  const label = `Interval of ${arm} over time, ${points.length} looks, last from ${signed(last.low)} to ${signed(last.high)}`;
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, class: "forest history", role: "img", "aria-label": label },
    ticks(...span, 4).map((value) => [
      svg("line", { x1: 52, x2: width - 14, y1: up(value), y2: up(value), class: "grid" }),
      svg("text", { x: 47, y: up(value) + 4, class: "tick end" }, signed(value)),
    ]),
    svg("path", { d: band, class: "band" }),
    svg("line", { x1: 52, x2: width - 14, y1: up(0), y2: up(0), class: "zero" }),
    svg("path", { d: `M${at("difference").join("L")}`, class: "line series-0" }),
    points.map((point) =>
      svg("circle", { cx: across(point.at), cy: up(point.difference), r: 2.5, class: "dot series-0" }),
    ),
    svg("text", { x: 52, y: height - 8, class: "tick" }, moment(times[0])),
    times.length > 1 && svg("text", { x: width - 14, y: height - 8, class: "tick end" }, moment(times.at(-1))),
  );
}

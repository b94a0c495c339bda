// A small line chart over time: axes with units, one line style per series, gaps where there is no value.

import { element, svg } from "./dom.js";
import { short } from "./format.js";
import { linear, ticks, top } from "./scale.js";

const WIDTH = 380;
const HEIGHT = 170;
const MARGIN = { left: 46, right: 10, top: 18, bottom: 24 };
/** Units that need no repeating beside each value. */
const COUNTS = new Set(["requests", "count"]);

/** `series` is a list of `{ name, points }`; a point is `{ at, value }`, with `at` in seconds and null for no value.
 * The axis reaches to `least` at least. */
export function lineChart({ title, unit, least = 0, series, from, to }) {
  const values = series.flatMap((one) => one.points.map((point) => point.value)).filter((value) => value !== null);
  const high = top(Math.max(least, ...values));
  const across = linear([from, to], [MARGIN.left, WIDTH - MARGIN.right]);
  const up = linear([0, high], [HEIGHT - MARGIN.bottom, MARGIN.top]);
  const lines = series.map((one, at) => line(one.points, across, up, at));
  const plot = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img", "aria-label": words(title, unit, series) },
    valueAxis(high, unit, up),
    timeAxis(from, to, across),
    lines,
  );
  const empty = values.length === 0 ? element("p", { class: "hint" }, "Nothing happened in this time.") : null;
  return element(
    "figure",
    { class: "panel chart-panel" },
    element("figcaption", null, element("h2", null, title), key(series, unit)),
    plot,
    empty,
  );
}

function line(points, across, up, number) {
  let path = "";
  let open = false;
  const dots = [];
  points.forEach(({ at, value }, index) => {
    if (value === null) {
      open = false;
      return;
    }
    const [x, y] = [across(at).toFixed(1), up(value).toFixed(1)];
    path += `${open ? "L" : "M"}${x} ${y}`;
    const alone = !open && (points[index + 1]?.value ?? null) === null;
    if (alone || index === points.length - 1)
      dots.push(svg("circle", { cx: x, cy: y, r: 2.5, class: `dot series-${number}` }));
    open = true;
  });
  return [
    svg("path", {
      d: path || "M0 0",
      class: `line series-${number}`,
      "data-points": points.filter((point) => point.value !== null).length,
    }),
    dots,
  ];
}

function valueAxis(high, unit, up) {
  const marks = ticks(0, high, 4).map((value) => [
    svg("line", { x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: up(value), y2: up(value), class: "grid" }),
    svg("text", { x: MARGIN.left - 5, y: up(value) + 4, class: "tick end" }, short(value)),
  ]);
  return [marks, svg("text", { x: 2, y: 11, class: "tick" }, unit)];
}

function timeAxis(from, to, across) {
  const span = to - from;
  const marks = ticks(-span, 0, 4).map((ago) => {
    const text = ago === 0 ? "now" : span > 150 ? `${short(ago / 60)} min` : `${short(ago)} s`;
    return svg("text", { x: across(to + ago), y: HEIGHT - 8, class: ago === 0 ? "tick end" : "tick middle" }, text);
  });
  const bottom = HEIGHT - MARGIN.bottom;
  return [svg("line", { x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: bottom, y2: bottom, class: "axis" }), marks];
}

function last(points) {
  return points.findLast((point) => point.value !== null)?.value ?? null;
}

function key(series, unit) {
  return element(
    "ul",
    { class: "series" },
    series.map((one, number) => {
      const value = last(one.points);
      return element(
        "li",
        null,
        svg(
          "svg",
          { viewBox: "0 0 24 8", class: "key-line", "aria-hidden": "true" },
          svg("path", { d: "M0 4L24 4", class: `line series-${number}` }),
        ),
        `${one.name} `,
        element("strong", null, value === null ? "–" : COUNTS.has(unit) ? short(value) : `${short(value)} ${unit}`),
      );
    }),
  );
}

function words(title, unit, series) {
  const told = series.map((one) => {
    const value = last(one.points);
    return `${one.name} ${value === null ? "no value" : `${short(value)} ${unit}`}`;
  });
  return `${title}, last values: ${told.join(", ")}`;
}

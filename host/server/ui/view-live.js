// Latency, throughput, load and faults over time, from /metrics, which is read every two seconds while the view is
// shown.

import { onKey, text } from "./api.js";
import { lineChart } from "./chart.js";
import { element, field, fill, table } from "./dom.js";
import { short } from "./format.js";
import { failed } from "./keys.js";
import { growth, parse, quantile, rate, total } from "./metrics.js";

const HINT =
  "Read from /metrics every two seconds while this view is open. " +
  "Latencies and generated tokens are counted when a request ends, rows as they are computed.";
const EVERY = 2000;
const SHOWN = 300;
/** Readings kept: the shown time and the longest window. */
const MAX_READINGS = 200;
const FIRST = "vllm:time_to_first_token_seconds";
const BETWEEN = "vllm:inter_token_latency_seconds";

/** What each chart shows: a value of a reading and of an earlier one. */
const CHARTS = [
  { title: "Time to first token", unit: "ms", series: quantiles(FIRST) },
  { title: "Time between tokens", unit: "ms", series: quantiles(BETWEEN) },
  {
    title: "Throughput",
    unit: "tokens/s",
    series: [
      ["generated", (before, now, seconds) => rate(before, now, "vllm:generation_tokens_total", seconds)],
      ["prompts", (before, now, seconds) => rate(before, now, "vllm:prompt_tokens_total", seconds)],
      ["rows computed", (before, now, seconds) => rate(before, now, "polyskill:engine_rows_total", seconds)],
    ],
  },
  {
    title: "Requests",
    unit: "requests",
    least: 4,
    series: [
      ["running", (_, now) => total(now, "vllm:num_requests_running")],
      ["waiting", (_, now) => total(now, "vllm:num_requests_waiting")],
    ],
  },
  {
    title: "Faults of routers",
    unit: "count",
    least: 4,
    series: [
      ["faults", (before, now) => growth(before, now, "polyskill:router_faults")],
      ["invalid rows", (before, now) => growth(before, now, "polyskill:router_invalid_rows")],
      ["rows on the base", (before, now) => growth(before, now, "polyskill:router_fallback_rows_total")],
    ],
  },
  {
    title: "Memory",
    unit: "%",
    series: [
      ["KV cache used", (_, now) => 100 * (total(now, "vllm:kv_cache_usage_perc") ?? NaN)],
      [
        "modules in memory",
        (_, now) =>
          (100 * (total(now, "polyskill:adapter_resident") ?? NaN)) /
          Math.max(1, total(now, "polyskill:modules_loaded")),
      ],
    ],
  },
];

function quantiles(name) {
  const of = (share) => (before, now) => {
    const value = quantile(before, now, name, share);
    return value === null ? null : 1000 * value;
  };
  return [
    ["median", of(0.5)],
    ["95th percentile", of(0.95)],
  ];
}

export function create() {
  const choices = [10, 30, 60].map((seconds) => element("option", { value: seconds }, `${seconds} seconds`));
  const view = {
    readings: [],
    timer: null,
    busy: false,
    visible: false,
    problem: element("div"),
    charts: element("div", { class: "charts" }),
    now: element("div"),
    window: element("select", null, choices),
  };
  view.window.value = "30";
  view.window.addEventListener("change", () => render(view));
  onKey((kind) => kind === "ordinary" && view.visible && poll(view));
  document.addEventListener("visibilitychange", () => view.visible && !document.hidden && poll(view));
  const hint = element("p", { class: "hint" }, HINT);
  const bar = element("div", { class: "row bar" }, hint, field("Rates and quantiles over", view.window));
  return {
    node: element("div", null, bar, view.problem, view.charts, view.now),
    show: () => {
      view.visible = true;
      poll(view);
      view.timer = setInterval(() => document.hidden || poll(view), EVERY);
    },
    hide: () => {
      view.visible = false;
      clearInterval(view.timer);
    },
  };
}

async function poll(view) {
  if (view.busy) return;
  view.busy = true;
  try {
    const series = parse(await text("/metrics"));
    view.readings.push({ at: performance.now() / 1000, series });
    if (view.readings.length > MAX_READINGS) view.readings.shift();
    fill(view.problem);
    render(view);
  } catch (error) {
    // A form that somebody types into stays.
    if (!view.problem.contains(document.activeElement)) fill(view.problem, failed("Metrics", error));
  }
  view.busy = false;
}

function render(view) {
  const latest = view.readings.at(-1);
  if (!latest) return;
  const from = latest.at - Math.min(SHOWN, Math.max(30, latest.at - view.readings[0].at));
  const shown = view.readings.filter((reading) => reading.at >= from);
  fill(
    view.charts,
    CHARTS.map(({ title, unit, least, series }) =>
      lineChart({
        title,
        unit,
        least,
        from,
        to: latest.at,
        series: series.map(([name, value]) => ({ name, points: shown.map((reading) => point(view, reading, value)) })),
      }),
    ),
  );
  renderNow(view, latest.series);
}

/** A reading's value against the reading one window before. */
function point(view, reading, value) {
  const start = reading.at - Number(view.window.value);
  const before = view.readings.find((one) => one.at >= start) ?? reading;
  const found = value(before.series, reading.series, reading.at - before.at);
  return { at: reading.at, value: Number.isFinite(found) ? found : null };
}

/** Totals since the start of the server, also for those who do not see the charts. */
function renderNow(view, series) {
  if (view.now.contains(document.activeElement)) return;
  const label = (one) => one.labels.finished_reason ?? one.labels.adapter_name ?? "";
  const rows = [
    ["Requests by end", "vllm:request_success_total"],
    ["Tokens by module, weighted", "polyskill:module_weighted_tokens_total"],
  ].flatMap(([name, key]) =>
    (series.get(key) ?? [])
      .sort((one, other) => other.value - one.value)
      .map((one) => [`${name}: ${label(one)}`, short(one.value)]),
  );
  const plain = [
    ["Generated tokens", "vllm:generation_tokens_total"],
    ["Prompt tokens", "vllm:prompt_tokens_total"],
    ["Steps", "polyskill:engine_steps_total"],
  ].map(([name, key]) => [name, short(total(series, key) ?? NaN)]);
  const open = view.now.querySelector("details")?.open ?? false;
  fill(
    view.now,
    element(
      "details",
      { open },
      element("summary", null, "Totals since the server started"),
      table("Totals since the server started", ["What", "Value"], [...plain, ...rows]),
    ),
  );
}

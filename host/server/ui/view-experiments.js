// Experiments: a list, and for each its arms, the check of the sample ratio, the metrics with their intervals, and
// the verdict with its reason.

import { json } from "./api.js";
import { adminView, changeButton } from "./admin-view.js";
import { element, facts, notice, table } from "./dom.js";
import { decimal, moment, percent, short } from "./format.js";
import { forestKey, forestPlot, historyPlot } from "./forest.js";

const MODES = {
  split: "split: each unit gets one arm",
  bandit: "bandit: better arms get more units",
  decision_shadow: "decision shadow: other arms decide, the control answers",
  full_shadow: "full shadow: other arms answer too, the control’s answer is sent",
};
const VERDICTS = {
  better: ["good", "▲ better"],
  worse: ["bad", "▼ worse"],
  undecided: ["warn", "○ undecided"],
  blocked: ["bad", "✗ blocked"],
};

export function create() {
  return adminView("Experiments", "Routers and skill sets against each other, on live traffic.", (name, refresh) =>
    name ? one(name, refresh) : list(),
  );
}

/** Small ones are not told apart. */
function probability(value) {
  return value < 0.001 ? "below 0.001" : decimal(value);
}

function path(name) {
  return `/admin/experiments/${encodeURIComponent(name)}`;
}

async function list() {
  let experiments = [];
  try {
    experiments = (await json("/admin/experiments")).experiments;
  } catch (error) {
    if (error.status !== 404) throw error;
    return element(
      "p",
      { class: "empty" },
      "This server has no experiments.",
      error.message ? ` It says: ${error.message}` : "",
    );
  }
  if (experiments.length === 0)
    return element("p", { class: "empty" }, "This server has no experiments. Declare one in its configuration.");
  const columns = ["Experiment", "State", "Mode", "Arms", "Requests", "Sample ratio", "Verdict"];
  return table(
    "Experiments",
    columns,
    experiments.map((experiment) => [
      element("a", { href: `#/experiments/${encodeURIComponent(experiment.name)}` }, experiment.name),
      experiment.state,
      experiment.mode,
      experiment.arms.map((arm) => arm.name).join(", "),
      sum(experiment.arms, "requests"),
      ratioWord(experiment.sample_ratio),
      verdictWord(experiment.verdict),
    ]),
  );
}

function sum(arms, name) {
  return arms.reduce((all, arm) => all + (arm[name] ?? 0), 0).toLocaleString("en-GB");
}

function ratioWord(ratio) {
  if (!ratio) return "–";
  return ratio.mismatch
    ? element("span", { class: "bad" }, "✗ mismatch")
    : element("span", { class: "good" }, "✓ as planned");
}

function verdictWord(verdict) {
  const words = {
    decided: ["good", `✓ ${verdict?.arm ?? "decided"}`],
    undecided: ["warn", "○ undecided"],
    blocked: ["bad", "✗ blocked"],
  };
  const [kind, text] = words[verdict?.state] ?? ["warn", verdict?.state ?? "–"];
  return element("span", { class: kind }, text);
}

async function one(name, refresh) {
  const experiment = await json(path(name));
  const back = element("p", null, element("a", { href: "#/experiments" }, "← All experiments"));
  const stop =
    experiment.state !== "stopped" &&
    changeButton(
      "Stop the experiment",
      `Stop “${experiment.name}”? Its requests then get the control “${experiment.control}”.`,
      () => json(`${path(name)}/stop`, { method: "POST", body: {} }),
      refresh,
      { class: "danger" },
    );
  return element(
    "div",
    { class: "experiment" },
    back,
    element("h2", null, experiment.name),
    verdict(experiment),
    about(experiment),
    stop,
    arms(experiment),
    ratio(experiment.sample_ratio, experiment.arms),
    element("h2", null, "Metrics"),
    forestKey(),
    experiment.metrics.map((metric) => metricPanel(metric, experiment.control)),
  );
}

/** The verdict in words, with its reason. */
function verdict(experiment) {
  const { state, arm, reason } = experiment.verdict ?? {};
  const texts = {
    decided: ["info", `Decided for ${arm}`],
    undecided: ["info", "Undecided"],
    blocked: ["error", "Blocked"],
  };
  const [kind, text] = texts[state] ?? ["info", "No verdict"];
  return notice(kind, element("strong", null, text), reason ? `: ${reason}.` : ".");
}

function about(experiment) {
  return facts([
    ["State", experiment.state],
    ["Mode", MODES[experiment.mode] ?? experiment.mode],
    ["Unit", experiment.unit],
    ["Layer", experiment.layer],
    ["Held out", percent(experiment.holdout)],
    ["Control", experiment.control],
    ["Started", experiment.started && moment(experiment.started)],
    ["Stopped", experiment.stopped && moment(experiment.stopped)],
    ["Stopped because", experiment.stop_reason],
  ]);
}

function arms(experiment) {
  const columns = ["Arm", "Weight", "Units", "Requests", "Fallbacks", "Faults"];
  const name = (arm) => (arm.name === experiment.control ? `${arm.name} (control)` : arm.name);
  return [
    element("h2", null, "Arms"),
    table(
      "Arms",
      columns,
      experiment.arms.map((arm) => [
        name(arm),
        percent(arm.weight, 1),
        ...["units", "requests", "fallbacks", "faults"].map((field) => (arm[field] ?? 0).toLocaleString("en-GB")),
      ]),
    ),
  ];
}

function ratio(check, all) {
  if (!check) return null;
  const seen = check.observed.reduce((whole, units) => whole + units, 0);
  const text = all
    .map((arm, at) => `${arm.name} ${check.observed[at]} of ${seen}, planned ${percent(check.expected[at], 1)}`)
    .join("; ");
  const p = `p ${probability(check.p_value)}`;
  return [
    element("h2", null, "Sample ratio"),
    check.mismatch
      ? notice(
          "error",
          element("strong", null, "The units are not split as planned"),
          ` (${p}): ${text}. The comparisons are not to be trusted.`,
        )
      : notice("info", `The units are split as planned (${p}): ${text}.`),
  ];
}

function metricPanel(metric, control) {
  const width = Math.max(300, Math.min(720, document.querySelector("main").clientWidth - 60));
  const title = [metric.name, metric.guard && element("span", { class: "badge" }, "guard")];
  const wanted = { increase: "more is better", decrease: "less is better" }[metric.wanted] ?? metric.wanted;
  return element(
    "section",
    { class: "panel metric", "aria-label": metric.name },
    element("h3", null, title),
    element(
      "p",
      { class: "hint" },
      `${metric.kind}, ${wanted}. ${metric.arms.map((arm) => `${arm.arm} ${short(arm.value)} (${arm.units} units)`).join(", ")}.`,
    ),
    metric.comparisons.length === 0
      ? element("p", { class: "hint" }, "There is nothing to compare yet.")
      : [forestPlot(metric, control, width), comparisons(metric, control)],
    history(metric, width),
  );
}

function comparisons(metric, control) {
  const ends = (pair) => (pair ? `${short(pair[0])} to ${short(pair[1])}` : "–");
  const columns = [
    "Arm",
    `Difference to ${control}`,
    "Relative",
    "Always valid",
    "Fixed horizon",
    "p",
    "p, adjusted",
    "CUPED",
    "Verdict",
  ];
  return table(
    `Comparisons of ${metric.name}`,
    columns,
    metric.comparisons.map((row) => {
      const [kind, text] = VERDICTS[row.verdict] ?? ["warn", row.verdict];
      return [
        row.arm,
        short(row.difference),
        percent(row.relative, 1),
        ends(row.always_valid),
        ends(row.fixed_horizon),
        probability(row.p_value),
        probability(row.adjusted_p_value),
        row.cuped ? "yes" : "no",
        element("span", { class: kind }, text),
      ];
    }),
  );
}

function history(metric, width) {
  const names = [...new Set((metric.history ?? []).map((point) => point.arm))];
  return names.map((arm) =>
    element(
      "div",
      null,
      element("h4", null, `${arm}: difference and always-valid interval over time`),
      historyPlot(
        metric.history.filter((point) => point.arm === arm),
        arm,
        width,
      ),
    ),
  );
}

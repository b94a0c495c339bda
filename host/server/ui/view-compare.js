// The same prompt to two routers or skill sets: answers, shares and agreement of the picks next to each other.

import { announce, button, element, facts, field, fill, notice } from "./dom.js";
import { generate } from "./generate.js";
import { decimal, percent, visible } from "./format.js";
import { replyCard } from "./reply.js";
import { described, settingsForm } from "./settings.js";
import { keep } from "./store.js";
import { sample } from "./tokens.js";
import { agreement } from "./traces.js";

const SIDES = ["left", "right"];

const NOTHING =
  "Nothing is compared yet. Choose two models, skill sets or routers and ask both. " +
  "They run one after the other, so that their times compare.";

export function create() {
  const view = {
    forms: { left: settingsForm("Left side"), right: settingsForm("Right side") },
    prompt: element("textarea", { rows: "3", placeholder: "The same question for both" }),
    problem: element("div"),
    result: element("div"),
    running: null,
  };
  view.ask = button("Ask both", () => run(view), { class: "primary" });
  view.stop = button("Stop", () => view.running?.abort(), { hidden: true });
  const sides = SIDES.map((side) =>
    element(
      "details",
      { class: "panel", open: true },
      element("summary", null, side === "left" ? "Left" : "Right"),
      view.forms[side].node,
    ),
  );
  fill(view.result, element("p", { class: "empty" }, NOTHING));
  return {
    node: element(
      "div",
      null,
      element("div", { class: "two" }, sides),
      element(
        "form",
        { class: "composer", onsubmit: (event) => event.preventDefault() },
        field("Prompt", view.prompt),
        view.problem,
        element("div", { class: "row" }, view.ask, view.stop),
      ),
      view.result,
    ),
  };
}

function readBoth(view) {
  const settings = {};
  for (const side of SIDES) {
    try {
      settings[side] = view.forms[side].read();
    } catch (error) {
      throw new Error(`${side === "left" ? "Left" : "Right"}: ${error.message}`);
    }
  }
  return settings;
}

async function run(view) {
  const prompt = view.prompt.value.trim();
  if (view.running) return;
  let settings;
  try {
    if (!prompt) throw new Error("Write a prompt first.");
    settings = readBoth(view);
  } catch (error) {
    fill(view.problem, notice("error", error.message));
    return;
  }
  fill(view.problem);
  view.running = new AbortController();
  view.ask.disabled = true;
  view.stop.hidden = false;
  await answer(view, prompt, settings);
  view.running = null;
  view.ask.disabled = false;
  view.stop.hidden = true;
}

async function answer(view, prompt, settings) {
  const cards = SIDES.map((side) => replyCard(described(settings[side])));
  const below = element("div");
  fill(
    view.result,
    element(
      "div",
      { class: "two" },
      cards.map((card) => card.node),
    ),
    below,
  );
  const replies = [];
  const signal = view.running.signal;
  for (const [at, side] of SIDES.entries()) {
    if (signal.aborted) return;
    const options = { signal, onText: cards[at].text };
    const reply = await generate(settings[side], [{ role: "user", content: prompt }], options);
    replies.push(keep(reply, side, prompt));
    cards[at].finish(reply);
    if (reply.trace)
      cards[at].node.append(
        element("a", { class: "link-button", href: `#/heat-map/${reply.number}` }, "Heat map of this answer"),
      );
  }
  announce("Both answers are here.");
  fill(below, element("h2", null, "Agreement"), agreed(replies));
}

function agreed([left, right]) {
  if (left.error || right.error) return notice("info", "There is no agreement to show, as an answer is missing.");
  const same = left.text === right.text ? "The answers are the same." : "The answers differ.";
  if (!left.trace || !right.trace)
    return element("p", null, same, " For the agreement of picks, set both traces to “full”.");
  const found = agreement(left.trace, right.trace);
  if (found.rows.length === 0)
    return element("p", null, same, " The first tokens differ already, so picks do not compare.");
  return [
    facts([
      ["Answers", same],
      ["Tokens that both begin with", String(found.rows.length)],
      ["Strongest module the same", `${found.same} of ${found.rows.length}`],
      ["Mean overlap of shares", percent(found.mean, 1)],
    ]),
    agreementTable(found.rows),
  ];
}

function agreementTable(rows) {
  const side = (pick) =>
    element("td", null, pick ? [sample(pick.name), ` ${pick.name} ${decimal(pick.weight, 2)}`] : "none");
  const body = rows.map((row) =>
    element(
      "tr",
      null,
      element("th", { scope: "row" }, element("code", null, visible(row.text))),
      side(row.left),
      side(row.right),
      element(
        "td",
        null,
        row.same ? element("span", { class: "good" }, "✓ same") : element("span", { class: "warn" }, "≠ other"),
      ),
      element("td", { class: "number" }, percent(row.overlap)),
    ),
  );
  const columns = ["Token", "Left", "Right", "Strongest", "Overlap"].map((name) =>
    element("th", { scope: "col" }, name),
  );
  return element(
    "div",
    { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Agreement by token" },
    element(
      "table",
      null,
      element("caption", null, "Agreement by token, up to where the answers part"),
      element("thead", null, element("tr", null, columns)),
      element("tbody", null, body),
    ),
  );
}

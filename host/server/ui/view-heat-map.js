// The heat map of one reply: tokens by layers, by group of sites, with details of a cell and a table of the same.

import { announce, button, element, facts, field, fill } from "./dom.js";
import { count, decimal, percent, visible } from "./format.js";
import { heatCanvas } from "./heat-canvas.js";
import { mark } from "./palette.js";
import { described } from "./settings.js";
import { onReply, reply, traced } from "./store.js";
import { hideTip, showTip } from "./tip.js";
import { legend, pickList, pickWords } from "./tokens.js";
import { GROUPS, cellSites, groupShares, layerCells, margin, summaryShares } from "./traces.js";

const PAGE = 100;

export function create() {
  const view = parts();
  view.group.addEventListener("change", () => render(view));
  view.opacity.addEventListener("change", () => render(view));
  view.choice.addEventListener("change", () => show(view, view.choice.value));
  view.tableHolder.addEventListener("toggle", () => renderTable(view));
  onReply(() => refresh(view));
  document.addEventListener("themechange", () => view.map.repaint());
  fill(
    view.body,
    view.controls,
    view.summary,
    view.pager,
    element("div", { class: "with-detail" }, view.map.node, view.detail),
    view.legend,
    view.tableHolder,
  );
  return { node: element("div", null, view.empty, view.body), show: (number) => show(view, number) };
}

/** The three choices above the map. */
function choices() {
  const choice = element("select");
  const group = element(
    "select",
    null,
    GROUPS.map((one) => element("option", { value: one.id }, one.label)),
  );
  const opacity = element(
    "select",
    null,
    element("option", { value: "weight" }, "Weight of the strongest"),
    element("option", { value: "margin" }, "Margin to the next"),
  );
  const fields = [field("Answer", choice), field("Sites", group), field("Opacity shows", opacity)];
  return { choice, group, opacity, controls: element("div", { class: "row controls" }, fields) };
}

function parts() {
  const view = {
    ...choices(),
    number: null,
    first: 0,
    cell: null,
    summary: element("div"),
    pager: element("div", { class: "row" }),
    body: element("div"),
    legend: element("div"),
    detail: element("section", { class: "panel detail", "aria-label": "Details of a cell" }),
    tableHolder: element("details", null, element("summary", null, "The same as a table")),
    table: element("div"),
    empty: element(
      "p",
      { class: "empty" },
      "No answer with a full trace is here yet. Ask something in the ",
      element("a", { href: "#/chat" }, "chat"),
      " with the trace set to “full”, then come back.",
    ),
  };
  view.tableHolder.append(view.table);
  view.map = heatCanvas(
    (token, layer, box, how) => details(view, token, layer, box, how),
    () => hideTip(),
  );
  return view;
}

function show(view, number) {
  const wanted = Number(number);
  if (number && reply(wanted)?.trace) view.number = wanted;
  view.first = 0;
  refresh(view);
  if (reply(view.number)?.trace?.sites.join() === "moe") {
    view.group.value = "experts";
    render(view);
  }
}

function refresh(view) {
  const replies = traced();
  view.empty.hidden = replies.length > 0;
  view.body.hidden = replies.length === 0;
  if (replies.length === 0) return;
  if (!replies.some((one) => one.number === view.number)) view.number = replies[0].number;
  fill(
    view.choice,
    replies.map((one) =>
      element(
        "option",
        { value: one.number },
        `${one.number}: ${one.prompt.slice(0, 40)} – ${described(one.settings)}`,
      ),
    ),
  );
  view.choice.value = String(view.number);
  render(view);
}

/** The rows of the page of tokens that is shown. */
function rowsOf(view) {
  const { trace } = reply(view.number);
  const rows = [];
  for (let token = view.first; token < Math.min(trace.tokens.length, view.first + PAGE); token += 1) {
    rows.push({ token, text: trace.tokens[token].text, cells: layerCells(trace, token, view.group.value) });
  }
  return rows;
}

function render(view) {
  const shown = reply(view.number);
  if (!shown?.trace) return;
  view.rows = rowsOf(view);
  view.cell = null;
  const picked = view.rows.some((row) => row.cells.some((cell) => cell.length > 0));
  view.map.show({ rows: view.rows, layers: shown.trace.layers, opacity: view.opacity.value });
  fill(
    view.summary,
    element(
      "p",
      { class: "hint" },
      `${count(shown.trace.tokens.length, "token")} by ${count(shown.trace.layers, "layer")}, sites: ${shown.trace.sites.join(", ") || "none"}. `,
      picked
        ? `The most opaque cell stands for ${decimal(view.map.most(), 2)}. Point at a cell, or move with the arrow keys.`
        : "No module acted at these sites.",
    ),
  );
  pages(view, shown.trace.tokens.length);
  const experts = view.group.value === "experts";
  const shares = experts ? groupShares(shown.trace, "experts") : summaryShares(shown.report);
  fill(view.legend, element("h2", null, experts ? "Experts" : "Modules"), legend(shares));
  fill(view.detail, element("h2", null, "Cell"), element("p", { class: "hint" }, "No cell is chosen."));
  renderTable(view);
}

function pages(view, tokens) {
  const go = (first) => {
    view.first = first;
    render(view);
  };
  if (tokens <= PAGE) return fill(view.pager);
  const last = Math.min(tokens, view.first + PAGE);
  return fill(
    view.pager,
    button("Earlier tokens", () => go(view.first - PAGE), { disabled: view.first === 0 }),
    element("span", null, `tokens ${view.first + 1} to ${last} of ${tokens}`),
    button("Later tokens", () => go(view.first + PAGE), { disabled: last === tokens }),
  );
}

function details(view, row, layer, box, how) {
  const { token, text, cells } = view.rows[row];
  const picks = cells[layer];
  const key = `${token}/${layer}`;
  const title = `Token ${token + 1} ${visible(text)}, layer ${layer}`;
  if (how === "key") announce(`${title}: ${pickWords(picks)}`);
  // Beside the map there are the details; on a narrow screen they are below it.
  if (how === "point" || innerWidth < 900) showTip(box, element("strong", null, title), pickList(picks.slice(0, 4)));
  if (view.cell === key && how === "point") return;
  view.cell = key;
  const sites = cellSites(reply(view.number).trace, token, layer, view.group.value);
  fill(
    view.detail,
    element("h2", null, "Cell"),
    facts([
      ["Token", `${token + 1}: ${visible(text)}`],
      ["Layer", String(layer)],
      ["Margin", decimal(margin(picks))],
    ]),
    sites.map((one) => [element("h3", null, one.site), pickList(one.picks)]),
    sites.length === 0 && element("p", { class: "hint" }, "The trace has no site of this group here."),
  );
}

function renderTable(view) {
  if (!view.tableHolder.open || !view.rows) return fill(view.table);
  const { trace } = reply(view.number);
  const layers = Array.from({ length: trace.layers }, (_, at) => at);
  const head = element(
    "tr",
    null,
    element("th", { scope: "col" }, "Token"),
    layers.map((layer) => element("th", { scope: "col" }, `L${layer}`)),
  );
  const cell = (picks) =>
    element(
      "td",
      { title: pickWords(picks) },
      picks.length
        ? [element("abbr", { title: picks[0].name }, mark(picks[0].name).code), ` ${percent(picks[0].weight)}`]
        : "–",
    );
  const body = view.rows.map((row) =>
    element("tr", null, element("th", { scope: "row" }, visible(row.text)), row.cells.map(cell)),
  );
  const whole = element(
    "table",
    { class: "heat-table" },
    element("caption", null, "Strongest module and its weight, by token and layer"),
    element("thead", null, head),
    element("tbody", null, body),
  );
  return fill(
    view.table,
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Heat map as a table" }, whole),
  );
}

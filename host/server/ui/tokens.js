// An answer as coloured tokens: each has the mark of the module with the largest share, and tells its modules and
// weights on hover and focus. Also the legend with shares.

import { element } from "./dom.js";
import { decimal, percent, visible } from "./format.js";
import { mark, markClass } from "./palette.js";
import { hideTip, showTip } from "./tip.js";
import { tokenShares } from "./traces.js";

const MAX_PICKS = 8;
/** Tokens of the chat template, such as the end of a turn. */
const SPECIAL = /^<.+>$/;

/** A module's sample: its code on its mark. */
export function sample(name) {
  return element("span", { class: `sample ${markClass(name)}`, "aria-hidden": "true" }, mark(name).code);
}

/** Modules with weights as a small table. */
export function pickList(picks) {
  if (picks.length === 0) return element("p", { class: "hint" }, "No module acted: the base answered.");
  const shown = picks.slice(0, MAX_PICKS);
  const rest = picks.length - shown.length;
  return element(
    "div",
    { class: "picks" },
    shown.map((one) =>
      element(
        "div",
        null,
        sample(one.name),
        element("span", { class: "name" }, one.name),
        element("span", { class: "number" }, decimal(one.weight)),
      ),
    ),
    rest > 0 && element("p", { class: "hint" }, `and ${rest} more`),
  );
}

/** Picks in words, for screen readers. */
export function pickWords(picks) {
  if (picks.length === 0) return "no module";
  return picks
    .slice(0, MAX_PICKS)
    .map((one) => `${one.name} ${decimal(one.weight, 2)}`)
    .join(", ");
}

/** All tokens of a reply. One is in the tab order; arrow keys move among them. */
export function tokenList(reply) {
  const { trace } = reply;
  let before = null;
  const tokens = trace.tokens.map((token, at) => {
    const picks = tokenShares(trace, at);
    const name = picks[0]?.name ?? null;
    const node = element(
      "span",
      {
        class: `token ${name ? markClass(name) : "plain"}${SPECIAL.test(token.text) ? " special" : ""}`,
        role: "option",
        "aria-selected": "false",
        tabindex: at === 0 ? "0" : "-1",
        "data-code": name && name !== before ? mark(name).code : null,
        "data-module": name ?? "",
        "aria-label": `${visible(token.text)}: ${pickWords(picks)}`,
      },
      token.text.replaceAll("\n", "↵\n"),
    );
    before = name;
    return node;
  });
  const list = element(
    "div",
    {
      class: "tokens",
      role: "listbox",
      "aria-orientation": "horizontal",
      "aria-label": "Tokens of the answer with their modules; arrow keys move",
    },
    tokens,
  );
  listen(list, tokens, trace);
  return list;
}

function listen(list, tokens, trace) {
  const show = (node) => {
    const at = tokens.indexOf(node);
    if (at < 0) return;
    const title = `Token ${at + 1}: ${visible(trace.tokens[at].text)}`;
    showTip(node, element("strong", null, title), pickList(tokenShares(trace, at)));
  };
  const select = (node, selected) => node.setAttribute("aria-selected", String(selected));
  list.addEventListener("mouseover", (event) => show(event.target.closest(".token")));
  list.addEventListener("mouseleave", hideTip);
  list.addEventListener("focusin", (event) => {
    tokens.forEach((token) => (token.tabIndex = -1));
    event.target.tabIndex = 0;
    select(event.target, true);
    show(event.target);
  });
  list.addEventListener("focusout", (event) => {
    select(event.target, false);
    hideTip();
  });
  list.addEventListener("keydown", (event) => {
    const at = tokens.indexOf(event.target);
    const to = {
      ArrowRight: at + 1,
      ArrowDown: at + 1,
      ArrowLeft: at - 1,
      ArrowUp: at - 1,
      Home: 0,
      End: tokens.length - 1,
    }[event.key];
    if (event.key === "Escape") hideTip();
    if (to === undefined || !tokens[to]) return;
    event.preventDefault();
    tokens[to].focus();
  });
}

function bar(one, largest) {
  const inner = element("span", { class: `bar-inner hue-${mark(one.name).hue}` });
  inner.style.width = `${(100 * Math.abs(one.weight)) / largest}%`;
  return element("span", { class: "bar-outer", "aria-hidden": "true" }, inner);
}

/** Modules with their shares and bars, largest first. */
export function legend(shares, most = 12) {
  if (shares.length === 0) return element("p", { class: "hint" }, "No module acted on this answer.");
  const largest = Math.max(...shares.map((one) => Math.abs(one.weight)), 1e-9);
  const rows = shares
    .slice(0, most)
    .map((one) =>
      element(
        "li",
        null,
        sample(one.name),
        element("span", { class: "name", title: one.name }, one.name),
        bar(one, largest),
        element("span", { class: "number" }, percent(one.weight, 1)),
      ),
    );
  const rest = shares.length - rows.length;
  return element(
    "div",
    null,
    element("ul", { class: "legend", "aria-label": "Modules with their shares" }, rows),
    rest > 0 && element("p", { class: "hint" }, `and ${rest} more with smaller shares`),
  );
}

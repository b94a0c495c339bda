// One reply as the chat and the side-by-side view show it: coloured text, how it was served, times, shares.

import { element, facts, fill, notice } from "./dom.js";
import { count, decimal, digest, seconds } from "./format.js";
import { legend, tokenList } from "./tokens.js";
import { summaryShares } from "./traces.js";

/** A place for a reply that is being written; `text` shows what is there, `finish` the whole reply. */
export function replyCard(title) {
  const body = element("div", { class: "answer" });
  const foot = element("div", { class: "reply-foot" });
  const node = element(
    "article",
    { class: "message reply", "aria-label": title },
    element("h2", null, title),
    body,
    foot,
  );
  const plain = element("p", { class: "plain-text" }, "…");
  body.append(plain);
  return {
    node,
    text: (text) => (plain.textContent = text || "…"),
    finish: (reply) => {
      fill(body, answer(reply));
      fill(foot, footing(reply));
    },
  };
}

function answer(reply) {
  if (reply.error)
    return [
      reply.text && element("p", { class: "plain-text" }, reply.text),
      notice("error", "No answer: ", reply.error.message),
    ];
  if (!reply.trace) return element("p", { class: "plain-text" }, reply.text || "(no text)");
  return [element("p", { class: "for-readers" }, reply.text), tokenList(reply), partial(reply)];
}

/** Tokens that hold parts of characters do not read as the text does. */
function partial(reply) {
  const joined = reply.trace.tokens.map((token) => token.text).join("");
  if (joined.trimStart().startsWith(reply.text.trim())) return null;
  return element(
    "details",
    null,
    element("summary", null, "The answer as plain text"),
    element("p", { class: "plain-text" }, reply.text),
  );
}

function footing(reply) {
  if (reply.error) return [];
  return [served(reply.report), element("div", { class: "times" }, times(reply)), shares(reply), details(reply)];
}

/** How it was served; a fallback is said with its reason. */
export function served(report) {
  if (!report) return null;
  if (report.served === "fallback") {
    const reason = report.fallback_reason ?? "the router gave no reason";
    return notice("warning", element("strong", null, "served: fallback"), ` – the base answered: ${reason}.`);
  }
  if (report.fallback_rows) {
    return notice(
      "warning",
      element("strong", null, "served: assigned"),
      ` – but ${count(report.fallback_rows, "row")} ran on the base`,
      report.fallback_reason ? `, ${report.fallback_reason}` : "",
    );
  }
  return null;
}

function times(reply) {
  const usage = reply.usage;
  const parts = [
    ["served", reply.report?.served ?? "–"],
    ["arm", reply.report?.arm],
    ["first token", seconds(reply.firstToken)],
    ["speed", reply.rate === null ? "–" : `${reply.rate.toFixed(1)} tokens/s`],
    ["tokens", usage ? `${usage.prompt_tokens} in, ${usage.completion_tokens} out` : "–"],
    ["ended by", { stop: "end of text", length: "the limit", stopped: "you" }[reply.finish] ?? reply.finish ?? "–"],
  ];
  const said = parts.filter(([, value]) => value !== null && value !== undefined);
  return said.map(([name, value]) =>
    element("span", { class: "chip" }, element("span", { class: "chip-name" }, name), ` ${value}`),
  );
}

function shares(reply) {
  if (!reply.report?.routing) {
    return element(
      "p",
      { class: "hint" },
      reply.report
        ? "The request had no trace, so there are no shares."
        : "The answer ended before its report came, so there are no shares.",
    );
  }
  return legend(summaryShares(reply.report));
}

function details(reply) {
  const report = reply.report;
  if (!report) return null;
  const router = report.router ? `${report.router.name} ${digest(report.router.digest)}` : "none";
  const alwaysOn = report.adapters?.map((one) => `${one.name} ${decimal(one.weight, 2)}`).join(", ");
  return element(
    "details",
    null,
    element("summary", null, "Composition"),
    facts([
      ["Router", router],
      ["Composition", digest(report.composition)],
      ["Always on", alwaysOn],
      ["Experiment", report.experiment],
      ["Arm", report.arm],
      ["Cached tokens", reply.usage?.prompt_tokens_details?.cached_tokens],
      ["Modules", report.modules.map((module) => `${module.name} ${digest(module.generation)}`).join(", ") || "none"],
    ]),
  );
}

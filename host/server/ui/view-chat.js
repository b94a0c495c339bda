// The chat: several turns with one model or skill set; each token of an answer has the mark of its strongest module.

import { announce, button, element, field, fill, notice } from "./dom.js";
import { generate } from "./generate.js";
import { replyCard } from "./reply.js";
import { described, settingsForm } from "./settings.js";
import { keep } from "./store.js";

const MAX_TURNS = 50;

export function create() {
  const chat = parts();
  const { form, log, prompt, codes, problem } = chat;
  chat.turns = [];
  chat.running = null;
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send(chat);
  });
  codes.addEventListener("change", () => log.classList.toggle("codes", codes.checked));
  reset(chat);
  const settings = element(
    "details",
    { class: "panel", open: innerWidth > 760 },
    element("summary", null, "Settings"),
    form.node,
    element("label", { class: "check" }, codes, "Codes above tokens where the module changes"),
  );
  const composer = element(
    "form",
    { class: "composer", onsubmit: (event) => event.preventDefault() },
    field("Message", prompt, "Enter sends, Shift and Enter start a new line."),
    problem,
    element(
      "div",
      { class: "row" },
      chat.sendButton,
      chat.stopButton,
      button("New conversation", () => reset(chat)),
    ),
  );
  return {
    node: element("div", { class: "with-side" }, settings, element("div", { class: "main-column" }, log, composer)),
  };
}

function parts() {
  const chat = {
    form: settingsForm("Settings of the chat"),
    log: element("div", { class: "conversation codes" }),
    prompt: element("textarea", { rows: "2", placeholder: "Ask something" }),
    codes: element("input", { type: "checkbox", checked: true }),
    problem: element("div"),
  };
  chat.sendButton = button("Send", () => send(chat), { class: "primary" });
  chat.stopButton = button("Stop", () => chat.running?.abort(), { hidden: true });
  return chat;
}

function reset(chat) {
  chat.running?.abort();
  chat.turns = [];
  fill(chat.problem);
  fill(
    chat.log,
    element(
      "p",
      { class: "empty" },
      "No messages yet. Choose a model or skill set, write a message and send it. ",
      "The answer’s tokens then show which module acted on them.",
    ),
  );
}

/** The conversation as the server takes it. */
function messages(turns) {
  return turns.flatMap((turn) => [
    { role: "user", content: turn.prompt },
    ...(turn.reply && !turn.reply.error ? [{ role: "assistant", content: turn.reply.text }] : []),
  ]);
}

async function send(chat) {
  const text = chat.prompt.value.trim();
  if (!text || chat.running) return;
  let settings;
  try {
    settings = chat.form.read();
  } catch (error) {
    fill(chat.problem, notice("error", error.message));
    return;
  }
  fill(chat.problem);
  if (chat.turns.length === 0) fill(chat.log);
  const turn = { prompt: text, reply: null };
  const turns = chat.turns;
  turns.push(turn);
  const question = element(
    "article",
    { class: "message question", "aria-label": "Your message" },
    element("h2", null, "You"),
    element("p", { class: "plain-text" }, text),
  );
  const card = replyCard(described(settings));
  turn.nodes = [question, card.node];
  chat.log.append(question, card.node);
  card.node.scrollIntoView({ block: "nearest" });
  chat.prompt.value = "";
  await answer(chat, turns, turn, card, settings);
}

async function answer(chat, turns, turn, card, settings) {
  const running = new AbortController();
  begin(chat, running);
  // A question without an answer is not asked again.
  const asked = messages(turns.filter((one) => one === turn || (one.reply && !one.reply.error)));
  const follow = (text) => {
    const near = scrollY + innerHeight > document.documentElement.scrollHeight - 150;
    card.text(text);
    if (near) scrollTo(0, document.documentElement.scrollHeight);
  };
  const reply = await generate(settings, asked, { signal: running.signal, onText: follow });
  turn.reply = keep(reply, "chat", turn.prompt);
  card.finish(reply);
  card.node.scrollIntoView({ block: "nearest" });
  if (reply.trace) {
    card.node.append(
      element("a", { class: "link-button", href: `#/heat-map/${reply.number}` }, "Heat map of this answer"),
    );
  }
  if (reply.error && !chat.prompt.value) chat.prompt.value = turn.prompt;
  announce(reply.error ? `No answer: ${reply.error.message}` : `Answer: ${reply.text}`);
  trim(turns);
  end(chat, running);
}

/** Old turns leave the page and the conversation, so that both stay small. */
function trim(turns) {
  while (turns.length > MAX_TURNS) turns.shift().nodes.forEach((node) => node.remove());
}

function begin(chat, running) {
  chat.running = running;
  chat.sendButton.disabled = true;
  chat.stopButton.hidden = false;
  chat.log.setAttribute("aria-busy", "true");
}

function end(chat, running) {
  if (chat.running !== running) return;
  chat.running = null;
  chat.sendButton.disabled = false;
  chat.stopButton.hidden = true;
  chat.log.removeAttribute("aria-busy");
}

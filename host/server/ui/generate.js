// One chat request, streamed: the text as it comes, the report at the end, and the times that the client sees.

import { events } from "./api.js";

/** The request's body from settings (see settings.js) and messages. */
export function body(settings, messages) {
  const request = {
    model: settings.model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    temperature: settings.temperature,
    max_tokens: settings.maxTokens,
    trace: settings.trace,
  };
  if (settings.seed !== null) request.seed = settings.seed;
  if (settings.unit) request.unit = settings.unit;
  if (settings.router) {
    const spec = { name: settings.router };
    if (Object.keys(settings.params).length > 0) spec.params = settings.params;
    if (settings.modules.length > 0) spec.modules = settings.modules;
    request.router = settings.router === "none" ? "none" : spec;
  }
  return request;
}

/** Runs a request. `onText` is called with the text so far. A request that is stopped keeps what it has. */
export async function generate(settings, messages, { signal, onText } = {}) {
  const started = performance.now();
  const reply = { settings, text: "", report: null, usage: null, finish: null, error: null };
  try {
    for await (const event of events("/v1/chat/completions", body(settings, messages), signal)) {
      take(reply, event, started);
      onText?.(reply.text);
    }
  } catch (error) {
    if (error.name === "AbortError") reply.finish = "stopped";
    else reply.error = error;
  }
  reply.seconds = (performance.now() - started) / 1000;
  reply.rate = rate(reply);
  return reply;
}

function take(reply, event, started) {
  const choice = event.choices?.[0];
  const piece = choice?.delta?.content;
  if (piece) {
    reply.lastToken = (performance.now() - started) / 1000;
    reply.firstToken ??= reply.lastToken;
    reply.text += piece;
  }
  if (choice?.finish_reason) reply.finish = choice.finish_reason;
  if (event.polyskill) reply.report = event.polyskill;
  if (event.usage) reply.usage = event.usage;
}

/** Tokens that come within less than this many seconds came in one piece; no speed follows from them. */
const SHORTEST = 0.02;

/** Tokens per second after the first token; null where there are too few to tell. */
function rate(reply) {
  const tokens = (reply.usage?.completion_tokens ?? 0) - 1;
  const span = reply.lastToken - reply.firstToken;
  return tokens > 0 && span > SHORTEST ? tokens / span : null;
}

// Replies of this tab: of the chat and of the side-by-side view. Traces are large, so the oldest are dropped first.

import { pack } from "./traces.js";

const MAX_TRACES = 50;
const MAX_TRACE_BYTES = 128 * 1024 * 1024;
const MAX_REPLIES = 200;

const replies = [];
const listeners = new Set();
let lastNumber = 0;

/** Keeps a finished reply and packs its trace. `where` is "chat", "left" or "right". */
export function keep(reply, where, prompt) {
  lastNumber += 1;
  reply.number = lastNumber;
  reply.where = where;
  reply.prompt = prompt;
  reply.trace = pack(reply.report);
  if (reply.report?.routing) delete reply.report.routing.tokens;
  replies.push(reply);
  trim();
  listeners.forEach((listener) => listener());
  return reply;
}

function trim() {
  while (replies.length > MAX_REPLIES) replies.shift();
  let traces = 0;
  let bytes = 0;
  for (const reply of replies.toReversed()) {
    if (!reply.trace) continue;
    traces += 1;
    bytes += reply.trace.bytes;
    // The newest is kept whatever its size.
    if (traces > 1 && (traces > MAX_TRACES || bytes > MAX_TRACE_BYTES)) {
      reply.trace = null;
      reply.traceDropped = true;
    }
  }
}

/** Replies whose trace is still here, newest first. */
export function traced() {
  return replies.filter((reply) => reply.trace).reverse();
}

export function reply(number) {
  return replies.find((one) => one.number === number);
}

export function onReply(listener) {
  listeners.add(listener);
}

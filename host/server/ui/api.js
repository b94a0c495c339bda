// Talks to the server: keys, errors in words, and streams of events. Keys live in this tab's session storage.

const NAMES = { ordinary: "polyskill.key", admin: "polyskill.admin_key" };
const listeners = new Set();

export function key(kind) {
  try {
    return sessionStorage.getItem(NAMES[kind]) ?? "";
  } catch {
    return "";
  }
}

export function setKey(kind, value) {
  try {
    if (value) sessionStorage.setItem(NAMES[kind], value);
    else sessionStorage.removeItem(NAMES[kind]);
  } catch {
    // Without session storage a key cannot be kept; requests then go without one.
  }
  listeners.forEach((listener) => listener(kind));
}

/** Calls back when a key changes; returns the way to stop that. */
export function onKey(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** A request that failed, with words for people. */
export class Failure extends Error {
  constructor(message, status, kind) {
    super(message);
    this.status = status;
    this.kind = kind;
  }
}

/** Which key a route wants. */
function kindOf(path) {
  return path.startsWith("/admin/") ? "admin" : "ordinary";
}

function headers(path, body) {
  const found = key(kindOf(path));
  return {
    ...(found ? { Authorization: `Bearer ${found}` } : {}),
    ...(body === undefined ? {} : { "Content-Type": "application/json" }),
  };
}

async function send(path, { method, body, signal } = {}) {
  const options = {
    method: method ?? (body === undefined ? "GET" : "POST"),
    signal,
    headers: headers(path, body),
    body: body === undefined ? undefined : JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached.", 0, kindOf(path));
  }
  if (!response.ok) throw await failure(path, response);
  return response;
}

async function failure(path, response) {
  let said = "";
  try {
    said = JSON.parse(await response.text()).error.message;
  } catch {
    // Not the server's own error; the status has to do.
  }
  const kind = kindOf(path);
  const wanted = `The server wants ${kind === "admin" ? "the admin key" : "an API key"}`;
  const own = { 401: key(kind) ? `${wanted}, and did not take the one given.` : `${wanted}.` };
  const text = own[response.status] ?? said ?? "";
  return new Failure(text || `The server answered with status ${response.status}.`, response.status, kind);
}

/** A request with JSON both ways. */
export async function json(path, options) {
  const response = await send(path, options);
  try {
    return await response.json();
  } catch {
    throw new Failure("The server's answer is not valid JSON.", response.status, kindOf(path));
  }
}

export async function text(path, options) {
  return (await send(path, options)).text();
}

/** The data of each server-sent event of a POST, as JSON, until the end. */
export async function* events(path, body, signal) {
  const response = await send(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  // A last event with a full trace comes in many pieces; they are joined once.
  let pieces = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    pieces.push(value);
    if (!value.includes("\n")) continue;
    const lines = pieces.join("").split("\n");
    pieces = [lines.pop()];
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data === "[DONE]") return;
      if (data) yield parsed(data);
    }
  }
}

function parsed(data) {
  let value;
  try {
    value = JSON.parse(data);
  } catch {
    throw new Failure("The stream holds an event that is not valid JSON.", 200, "ordinary");
  }
  if (value.error) throw new Failure(String(value.error.message ?? "The stream broke off."), 200, "ordinary");
  return value;
}

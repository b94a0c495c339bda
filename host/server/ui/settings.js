// The controls that say what answers: model or skill set, router with parameters, sampling. The chat has one set, the
// side-by-side view two.

import { json, key, onKey } from "./api.js";
import { element, field, fill, notice } from "./dom.js";
import { register } from "./palette.js";

const KINDS = { base: "Base", skill_set: "Skill sets" };
const known = { models: null, routers: null, failure: null };
const listeners = new Set();

/** Asks the server for models, and for routers where there is an admin key. */
export async function refreshChoices() {
  try {
    const reply = await json("/v1/models");
    known.models = reply.data;
    known.failure = null;
    register(reply.data.filter((model) => !KINDS[model.kind] && model.root === model.id).map((model) => model.id));
  } catch (error) {
    known.failure = error;
  }
  known.routers = null;
  if (key("admin")) {
    const reply = await json("/admin/routers").catch(() => null);
    known.routers = reply?.routers.map((router) => router.name) ?? null;
  }
  listeners.forEach((listener) => listener());
}

onKey(refreshChoices);

/** One set of controls. `read` returns the settings or throws an error in words. */
export function settingsForm(label) {
  const form = controls();
  const status = element("div");
  const node = element(
    "div",
    { class: "settings", role: "group", "aria-label": label },
    status,
    field("Model or skill set", form.model),
    field("Router", form.router, "Empty: what the model stands for. “none”: the base alone. “a+b”: a chain."),
    field("Router parameters", form.params, "One “name = value” a line; they need a router's name above."),
    field("Candidate modules", form.modules, "Names, globs or tag:NAME, with commas. Empty: all that fit."),
    element("div", { class: "pair" }, field("Temperature", form.temperature), field("Most tokens", form.maxTokens)),
    element("div", { class: "pair" }, field("Seed", form.seed), field("Trace", form.trace)),
    field("Unit", form.unit, "Who asks, for routers and experiments that split by user."),
    form.list,
  );
  const update = () => {
    fillModels(form.model);
    fill(
      form.list,
      ["none", ...(known.routers ?? [])].map((name) => element("option", { value: name })),
    );
    fill(
      status,
      known.failure &&
        notice(
          "error",
          "Models: ",
          known.failure.message,
          known.failure.status === 401 ? " Give it under “Keys”." : "",
        ),
    );
  };
  listeners.add(update);
  update();
  return { node, read: () => read(form), choose: (model) => choose(form.model, model) };
}

function controls() {
  controls.count = (controls.count ?? 0) + 1;
  const list = element("datalist", { id: `routers-${controls.count}` });
  const trace = element(
    "select",
    null,
    ["full", "summary", "none"].map((level) => element("option", { value: level }, level)),
  );
  return {
    list,
    trace,
    model: element("select"),
    router: element("input", { type: "text", list: list.id, autocomplete: "off", spellcheck: "false" }),
    params: element("textarea", { rows: "2", spellcheck: "false", placeholder: "top_k = 2" }),
    modules: element("input", { type: "text", autocomplete: "off", spellcheck: "false" }),
    temperature: element("input", { type: "number", min: "0", max: "100", step: "0.1", value: "0" }),
    maxTokens: element("input", { type: "number", min: "1", step: "1", value: "96" }),
    unit: element("input", { type: "text", autocomplete: "off", spellcheck: "false" }),
    seed: element("input", { type: "number", step: "1", placeholder: "random" }),
  };
}

/** Models under headings by kind; what was chosen stays so. */
function fillModels(select) {
  const before = select.value;
  const groups = new Map();
  for (const model of known.models ?? []) {
    const group = KINDS[model.kind] ?? (model.root === model.id ? "Modules" : "Aliases");
    if (!groups.has(group)) groups.set(group, []);
    const ready = model.status === "ready" || !model.status;
    groups.get(group).push(element("option", { value: model.id }, ready ? model.id : `${model.id} (${model.status})`));
  }
  const order = ["Skill sets", "Base", "Modules", "Aliases"].filter((name) => groups.has(name));
  fill(
    select,
    order.map((name) => element("optgroup", { label: name }, groups.get(name))),
  );
  if (before) choose(select, before);
}

function choose(select, value) {
  if ([...select.options].some((option) => option.value === value)) select.value = value;
}

function number(input, name, low) {
  const value = Number(input.value);
  if (input.value.trim() === "" || !Number.isFinite(value) || value < low) {
    throw new Error(`${name} must be a number from ${low} on.`);
  }
  return value;
}

function read(form) {
  if (!form.model.value) throw new Error("No model is chosen: the server's list of models is not here yet.");
  const router = form.router.value.trim();
  const params = parameters(form.params.value);
  const modules = form.modules.value
    .split(",")
    .map((name) => name.trim())
    .filter(Boolean);
  if (!router && (Object.keys(params).length > 0 || modules.length > 0)) {
    throw new Error("Router parameters and candidate modules need a router's name.");
  }
  return {
    model: form.model.value,
    router,
    params,
    modules,
    trace: form.trace.value,
    unit: form.unit.value.trim(),
    temperature: number(form.temperature, "Temperature", 0),
    maxTokens: number(form.maxTokens, "Most tokens", 1),
    seed: form.seed.value.trim() === "" ? null : Math.trunc(number(form.seed, "Seed", 0)),
  };
}

/** Lines of "name = value"; values are flags, numbers or text. */
function parameters(text) {
  const found = {};
  for (const line of text
    .split("\n")
    .map((one) => one.trim())
    .filter(Boolean)) {
    const at = line.indexOf("=");
    if (at < 1) throw new Error(`The parameter line “${line}” must be “name = value”.`);
    const value = line.slice(at + 1).trim();
    const plain = value.replace(/^"(.*)"$/, "$1");
    const scalar = plain === value && value !== "" && Number.isFinite(Number(value)) ? Number(value) : plain;
    found[line.slice(0, at).trim()] = value === "true" || value === "false" ? value === "true" : scalar;
  }
  return found;
}

/** Settings in a few words. */
export function described(settings) {
  return settings.router ? `${settings.model} · router ${settings.router}` : settings.model;
}

// The library: modules with kind, generation, tags, where their weights are, and aliases; load, unload and pin.

import { json } from "./api.js";
import { adminView, changeButton } from "./admin-view.js";
import { announce, element, facts, field, fill, notice, table } from "./dom.js";
import { bytes, count, digest, seconds } from "./format.js";
import { register } from "./palette.js";
import { refreshChoices } from "./settings.js";
import { sample } from "./tokens.js";

export function create() {
  return adminView("Modules", "Modules that the server knows, and where their weights are.", load);
}

async function load(_, refresh) {
  const library = await json("/admin/modules");
  register(library.modules.map((module) => module.name));
  const again = async () => {
    await refresh();
    await refreshChoices();
  };
  return [summary(library), modules(library, again), aliases(library, again), loadForm(again), failures(library)];
}

function summary(library) {
  const pool = library.pool;
  return facts([
    ["Modules", String(library.modules.length)],
    ["In memory", `${pool.resident}, ${bytes(library.resident_bytes)}`],
    ["Held by requests", bytes(pool.leased_bytes)],
    ["Waiting for room", String(pool.waiting)],
    ["Found in memory", count(pool.hits, "time")],
    ["Read", count(pool.loads, "time")],
    ["Made room", count(pool.evictions, "time")],
    ["After a restart", library.durable ? "what was loaded stays" : "only what the configuration declares"],
  ]);
}

function modules(library, refresh) {
  if (library.modules.length === 0)
    return element(
      "p",
      { class: "empty" },
      "The library is empty. Load a module below, or start the server with --adapters DIR.",
    );
  const columns = ["Module", "Change", "Kind", "Generation", "Tags", "Weights", "Size", "Leases", "Pinned", "Source"];
  return table(
    "Modules",
    columns,
    library.modules.map((module) => row(module, refresh)),
  );
}

function row(module, refresh) {
  const generation = element("code", { title: module.generation }, digest(module.generation));
  const name = element(
    "span",
    { class: "module-name", title: module.description ?? "" },
    sample(module.name),
    ` ${module.name}`,
  );
  const residency = module.tier === "memory" ? "in memory" : `on ${module.tier}`;
  const source = module.source
    ? element("span", { class: "source", title: module.source }, shortSource(String(module.source)))
    : "–";
  return [
    name,
    changes(module, refresh),
    module.kind,
    generation,
    tags(module.tags),
    [residency, element("span", { class: "hint below" }, uses(module))],
    bytes(module.bytes),
    String(module.leases),
    module.pinned ? "yes" : "no",
    [
      source,
      module.load_seconds !== null &&
        element("span", { class: "hint below" }, ` loaded in ${seconds(module.load_seconds)}`),
    ],
  ];
}

/** How often requests found the weights in memory, they were read again, and they made room. */
function uses(module) {
  return `found ${module.hits}, read ${module.loads}, made room ${module.evictions}`;
}

/** Tags; what stands before a colon is for machines, and shown on pointing only. */
function tags(all) {
  const plain = all.filter((tag) => !tag.includes(":"));
  return element("span", { class: "tags", title: all.join(", ") }, plain.join(", ") || "–");
}

/** The last two parts of a path. */
function shortSource(source) {
  const parts = source.split("/").filter(Boolean);
  return parts.length > 2 ? `…/${parts.slice(-2).join("/")}` : source;
}

function changes(module, refresh) {
  const post = (body) => json("/admin/modules", { body: { name: module.name, ...body } });
  const aliases = module.aliases.length ? `, nor its aliases ${module.aliases.join(", ")}` : "";
  const question = `Unload “${module.name}”? Requests that run keep it; new ones no longer find it${aliases}.`;
  const name = module.name.split("/").map(encodeURIComponent).join("/");
  const path = `/admin/modules/${name}?expected_generation=${module.generation}`;
  return element(
    "span",
    { class: "changes" },
    changeButton(module.pinned ? "Unpin" : "Pin", null, () => post({ pinned: !module.pinned }), refresh, {
      "aria-label": `${module.pinned ? "Unpin" : "Pin"} ${module.name}`,
    }),
    changeButton("Unload", question, () => json(path, { method: "DELETE" }), refresh, {
      "aria-label": `Unload ${module.name}`,
    }),
  );
}

function aliases(library, refresh) {
  const pairs = library.modules.flatMap((module) => module.aliases.map((alias) => [alias, module.name]));
  const rows = pairs.map(([alias, name]) => [
    alias,
    name,
    changeButton(
      "Remove",
      `Remove the alias “${alias}”?`,
      () => json(`/admin/modules/${encodeURIComponent(alias)}`, { method: "DELETE" }),
      refresh,
      { "aria-label": `Remove alias ${alias}` },
    ),
  ]);
  return [
    element("h2", null, "Aliases"),
    rows.length
      ? table("Aliases", ["Alias", "Stands for", "Change"], rows)
      : element("p", { class: "hint" }, "There are no aliases."),
    aliasForm(library, refresh),
  ];
}

/** A form whose answer and failure stand below it. */
function form(title, fields, label, change, refresh) {
  const said = element("div");
  const submit = async (event) => {
    event.preventDefault();
    fill(said, notice("info", "The server is at it…"));
    try {
      const words = await change();
      await refresh();
      announce(words);
    } catch (error) {
      fill(said, notice("error", error.message));
    }
  };
  return element(
    "details",
    { class: "panel" },
    element("summary", null, title),
    element("form", { class: "inline-form", onsubmit: submit }, fields, element("button", { type: "submit" }, label)),
    said,
  );
}

function aliasForm(library, refresh) {
  const alias = element("input", { type: "text", required: true, autocomplete: "off" });
  const target = element(
    "select",
    null,
    library.modules.map((module) => element("option", { value: module.name }, module.name)),
  );
  const change = async () => {
    await json("/admin/modules", { body: { name: alias.value.trim(), alias_of: target.value } });
    return "The alias is set.";
  };
  return form("Set an alias", [field("Alias", alias), field("Stands for", target)], "Set", change, refresh);
}

function loadForm(refresh) {
  const name = element("input", { type: "text", required: true, autocomplete: "off" });
  const source = element("input", { type: "text", required: true, autocomplete: "off", size: "40" });
  const replace = element("input", { type: "checkbox" });
  const change = async () => {
    const loaded = await json("/admin/modules", {
      body: { name: name.value.trim(), source: source.value.trim(), replace: replace.checked },
    });
    return `${loaded.name} is loaded.`;
  };
  const fields = [
    field("Name", name),
    field("Source", source, "A directory, archive or address that the configuration allows."),
    element("label", { class: "check" }, replace, "Replace what has the name"),
  ];
  return [element("h2", null, "Load"), form("Load a module", fields, "Load", change, refresh)];
}

function failures(library) {
  const failed = Object.entries(library.not_loaded ?? {});
  if (failed.length === 0) return null;
  return [element("h2", null, "Not loaded"), table("Modules that are not loaded", ["Name", "Reason"], failed)];
}

// The router plugins: versions, standing, faults, quarantine, time in their code; release and roll back.

import { json } from "./api.js";
import { adminView, changeButton } from "./admin-view.js";
import { element, facts, notice, table } from "./dom.js";
import { count, digest, seconds, short } from "./format.js";
import { refreshChoices } from "./settings.js";

export function create() {
  return adminView("Plugins", "Routers that the server has, with their faults.", load);
}

async function load(_, refresh) {
  const reply = await json("/admin/routers");
  const again = async () => {
    await refresh();
    await refreshChoices();
  };
  if (reply.routers.length === 0) {
    return [
      element(
        "p",
        { class: "empty" },
        "No router is loaded. Start the server with --plugins DIR, or build them with cargo xtask plugins.",
      ),
      notLoaded(reply),
    ];
  }
  return [
    overview(reply.routers),
    element("h2", null, "Each router"),
    reply.routers.map((router) => card(router, again)),
    notLoaded(reply),
  ];
}

function overview(routers) {
  const columns = [
    "Router",
    "Version",
    "Digest",
    "Standing",
    "Plans",
    "Faults",
    "Invalid rows",
    "Abstentions",
    "Quarantines",
  ];
  return table(
    "Routers",
    columns,
    routers.map((router) => [
      router.name,
      router.version,
      element("code", { title: router.digest }, digest(router.digest)),
      standing(router),
      String(router.plans),
      String(router.faults),
      String(router.invalid_rows),
      String(router.abstentions),
      String(router.quarantines),
    ]),
  );
}

/** The standing as a word with a sign, not by colour alone. */
function standing(router) {
  const words = {
    serving: ["good", "✓ serving"],
    quarantined: ["warn", `! quarantined, ${seconds(router.quarantine_seconds_left)} left`],
    out: ["bad", "✗ out until it is released or replaced"],
  };
  const [kind, text] = words[router.standing] ?? ["warn", router.standing];
  return element("span", { class: kind }, text);
}

function card(router, refresh) {
  const release =
    router.standing !== "serving" &&
    changeButton(
      "Release",
      null,
      () => json("/admin/routers", { body: { name: router.name, release: true } }),
      refresh,
      { "aria-label": `Release ${router.name}` },
    );
  const remove = changeButton(
    "Remove",
    `Remove the router “${router.name}”? Requests that name it then fail.`,
    () => json(`/admin/routers/${encodeURIComponent(router.name)}`, { method: "DELETE" }),
    refresh,
    { "aria-label": `Remove ${router.name}` },
  );
  return element(
    "details",
    { class: "panel", open: router.standing !== "serving" },
    element("summary", null, router.name, " ", standing(router)),
    told(router),
    router.last_fault && notice("warning", "Last fault: ", String(router.last_fault)),
    router.last_invalid_row && notice("warning", "Last invalid row: ", String(router.last_invalid_row)),
    budgets(router),
    previous(router, refresh),
    element("div", { class: "row" }, release, remove),
  );
}

/** What is known of a router beside its name and standing. */
function told(router) {
  const { calls, rows, seconds: spent } = router.route ?? {};
  const speed = () =>
    `${seconds(spent)}, ${seconds(spent / calls)} a call, ${short(rows / Math.max(spent, 1e-9))} rows/s`;
  return facts([
    ["Version", router.version],
    ["Digest", element("code", { class: "long" }, router.digest)],
    ["Rows decided in its code", calls ? `${count(rows, "row")} in ${count(calls, "call")}` : "none"],
    ["Time in that code", calls ? speed() : null],
    ["Quarantines", String(router.quarantines)],
  ]);
}

/** Budgets, where a server tells them. */
function budgets(router) {
  if (!router.budgets) return null;
  return facts(Object.entries(router.budgets).map(([name, value]) => [name.replaceAll("_", " "), String(value)]));
}

function previous(router, refresh) {
  const versions = router.previous ?? [];
  if (versions.length === 0) return element("p", { class: "hint" }, "There is no earlier version to roll back to.");
  return element(
    "ul",
    { class: "plain" },
    versions.map((version) => {
      const name = typeof version === "string" ? version : version.digest;
      return element(
        "li",
        null,
        "Earlier version ",
        element("code", null, digest(name)),
        " ",
        changeButton(
          "Roll back",
          `Let the version ${digest(name)} of “${router.name}” serve again?`,
          () => json("/admin/routers", { body: { name: router.name, roll_back: name } }),
          refresh,
          { "aria-label": `Roll ${router.name} back to ${digest(name)}` },
        ),
      );
    }),
  );
}

function notLoaded(reply) {
  if (!reply.not_loaded?.length) return null;
  return [
    element("h2", null, "Not loaded"),
    table(
      "Bundles that were not loaded",
      ["Bundle", "Reason"],
      reply.not_loaded.map((one) => [one.path, one.error]),
    ),
  ];
}

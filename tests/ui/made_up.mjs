// Views with answers that are made up: experiments, a fallback, a server that wants a key, hostile names.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { view } from "./session.mjs";

const EXPERIMENTS = JSON.parse(readFileSync(new URL("experiments.json", import.meta.url)));
const HOSTILE = "<img src=x onerror=document.title='broken'>";

const isAdmin = (address) => address.pathname.startsWith("/admin/experiments");

/** First what the server itself says, then the made-up experiments. */
export async function experiments(page) {
  page.expectedFailures.push("/admin/experiments");
  await view(page, "experiments", "Experiments");
  await page.locator("section:visible").locator("table, .empty").first().waitFor();
  page.expectedFailures.pop();
  const stopped = [];
  await page.route(isAdmin, (route) => {
    const parts = new URL(route.request().url()).pathname.split("/").slice(3).map(decodeURIComponent);
    if (parts[1] === "stop") {
      stopped.push(`${route.request().method()} ${parts[0]}`);
      return route.fulfill({ json: {} });
    }
    const one = EXPERIMENTS.experiments.find((experiment) => experiment.name === parts[0]);
    return route.fulfill({ json: parts.length === 0 ? EXPERIMENTS : one });
  });
  await page.locator("section:visible").getByRole("button", { name: "Refresh" }).click();
  const rows = page.getByRole("region", { name: "Experiments" }).locator("tbody tr");
  await rows.nth(1).waitFor();
  assert.match(await rows.nth(1).innerText(), /three <b>arms<\/b>[\s\S]*mismatch[\s\S]*blocked/);
  await experiment(page, stopped);
}

async function experiment(page, stopped) {
  await page.getByRole("link", { name: "arrow-or-phatgoose" }).click();
  const shown = page.locator(".experiment");
  await shown.waitFor();
  assert.match(await shown.innerText(), /Undecided: the intervals of `correct` hold zero/);
  assert.match(await shown.innerText(), /The units are split as planned/);
  assert.equal(
    await shown.locator(".forest .interval.always").count(),
    6,
    "two always-valid intervals with their ends",
  );
  assert.equal(await shown.locator(".forest .zero").count(), 4, "a zero line in each plot");
  assert.equal(await shown.locator(".history .band").count(), 2, "an interval over time per metric");
  await shown.getByRole("button", { name: "Stop the experiment" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Stop the experiment" }).click();
  await page.waitForFunction(() => !document.querySelector("dialog[open]"));
  await shown.waitFor();
  assert.deepEqual(stopped, ["POST arrow-or-phatgoose"]);
}

function stream(...events) {
  const body = [...events.map((event) => JSON.stringify(event)), "[DONE]"].map((data) => `data: ${data}\n\n`).join("");
  return { contentType: "text/event-stream", body };
}

const model = (id, kind) => ({ id, root: id, kind, status: "ready" });

/** A model, a module and an answer whose texts are markup; the answer is a fallback. */
export async function hostile(page) {
  const models = { data: [model("base", "base"), model(HOSTILE, "lora")] };
  const site = { layer: 0, site: "q_proj", picks: [[0, 1]] };
  const experts = { layer: 0, site: "moe", experts: [[3, 0.9]] };
  const report = {
    composition: "00".repeat(32),
    router: { name: HOSTILE, digest: HOSTILE },
    modules: [{ name: HOSTILE, generation: HOSTILE }],
    served: "fallback",
    fallback_reason: HOSTILE,
    routing: { share: { [HOSTILE]: 1 }, tokens: [{ token: 1, text: HOSTILE, sites: [site], experts: [experts] }] },
  };
  await page.route("**/v1/models", (route) => route.fulfill({ json: models }));
  await page.route("**/v1/chat/completions", (route) =>
    route.fulfill(
      stream(
        { choices: [{ delta: { content: HOSTILE } }] },
        { choices: [{ delta: {}, finish_reason: "stop" }], polyskill: report },
        { choices: [], usage: { prompt_tokens: 1, completion_tokens: 1 } },
      ),
    ),
  );
  await page.reload();
  await view(page, "chat", "Chat");
  await page.getByRole("textbox", { name: "Message" }).fill(HOSTILE);
  await page.getByRole("button", { name: "Send" }).click();
  await page.locator(".notice.warning", { hasText: "served: fallback" }).waitFor();
  await page.locator(".token").first().hover();
  await page.getByText("Composition", { exact: true }).first().click();
  await page.getByRole("link", { name: "Heat map of this answer" }).click();
  await page.getByRole("application").focus();
  assert.ok(!(await page.locator(".detail").innerText()).includes("expert 3"), "experts of the base are no modules");
  await page.getByLabel("Sites").selectOption({ label: "Experts of the base" });
  await page.getByRole("application").press("Home");
  assert.match(await page.locator(".detail").innerText(), /moe[\s\S]*expert 3[\s\S]*0\.900/);
  assert.equal(await page.locator("img").count(), 0, "nothing of it became markup");
  assert.match(await page.title(), /Heat map/);
}

/** A server that wants an API key says so beside the models and under the question. */
export async function refused(page) {
  const error = { error: { message: "missing or wrong bearer key" } };
  await page.route("**/v1/**", (route) => route.fulfill({ status: 401, json: error }));
  page.expectedFailures.push("/v1/");
  await page.reload();
  await view(page, "chat", "Chat");
  await page.getByText("Models: The server wants an API key").waitFor();
  await page.getByRole("textbox", { name: "Message" }).fill("Hello");
  await page.getByRole("button", { name: "Send" }).click();
  await page.getByText("No model is chosen").waitFor();
}

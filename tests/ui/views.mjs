// What each view must show, driven as people would. Each function takes the page and the settings of the run.

import assert from "node:assert/strict";

import { giveKey, view } from "./session.mjs";

const PROMPT = process.env.POLYSKILL_UI_PROMPT ?? "Translate Monday, 3 March 2025 into French.";
/** Longest wait for an answer of the model, in milliseconds. */
const ANSWER = 120_000;

/** The model that the test asks: named by the environment, else the first skill set, else the first module. */
async function chooseModel(form, wanted = process.env.POLYSKILL_UI_MODEL) {
  const model = form.getByLabel("Model or skill set");
  await model.locator("option").first().waitFor({ state: "attached" });
  const names = await model
    .locator("optgroup[label='Skill sets'] option, optgroup[label='Modules'] option")
    .evaluateAll((all) => all.map((one) => one.value));
  const name = wanted ?? names[0];
  assert.ok(name, "the server has neither a skill set nor a module; name a model in POLYSKILL_UI_MODEL");
  await model.selectOption(name);
  return name;
}

async function ask(page, text) {
  const replies = page.locator(".conversation .reply .times");
  const before = await replies.count();
  await page.getByRole("textbox", { name: "Message" }).fill(text);
  await page.keyboard.press("Enter");
  await replies.nth(before).waitFor({ timeout: ANSWER });
}

export async function chat(page) {
  await view(page, "chat", "Chat");
  const settings = page.getByRole("group", { name: "Settings of the chat" });
  if (!(await settings.isVisible())) await page.getByText("Settings", { exact: true }).click();
  await chooseModel(settings);
  if (process.env.POLYSKILL_UI_ROUTER)
    await settings.getByLabel("Router", { exact: true }).fill(process.env.POLYSKILL_UI_ROUTER);
  await settings.getByLabel("Most tokens").fill("32");
  await ask(page, PROMPT);
  const reply = page.locator(".conversation .reply").first();
  const tokens = reply.locator(".token");
  assert.ok((await tokens.count()) > 0, "tokens are shown");
  const coloured = reply.locator(".token[data-module]:not([data-module=''])");
  assert.ok((await coloured.count()) > 0, "some token has a module");
  const ground = await coloured.first().evaluate((node) => getComputedStyle(node).backgroundColor);
  assert.notEqual(ground, "rgba(0, 0, 0, 0)", "a token is coloured");
  assert.ok((await reply.locator(".token[data-code]").count()) > 0, "a code stands where the module changes");
  assert.ok((await reply.locator(".legend li").count()) > 0, "the legend has modules");
  assert.match(
    await reply.locator(".times").innerText(),
    /served (assigned|fallback)[\s\S]*first token [\d.]+ (ms|s)[\s\S]*speed/,
  );
  await tokenDetails(page, coloured, tokens);
  await ask(page, "And once more?");
  assert.equal(await page.locator(".conversation .reply").count(), 2, "two turns");
}

async function tokenDetails(page, coloured, tokens) {
  const name = await coloured.first().getAttribute("data-module");
  await coloured.first().hover();
  assert.ok((await page.locator(".tip").innerText()).includes(name), "the tooltip names the module");
  await page.mouse.move(1, 1);
  await tokens.first().focus();
  if ((await tokens.count()) > 1) {
    await page.keyboard.press("ArrowRight");
    assert.equal(await tokens.nth(1).getAttribute("aria-selected"), "true", "an arrow key moves to the next token");
    assert.match(await page.locator(".tip").innerText(), /Token 2/);
  }
  await page.keyboard.press("Escape");
  assert.ok(await page.locator(".tip").isHidden(), "Escape hides the tooltip");
}

export async function heatMap(page) {
  await view(page, "chat", "Chat");
  await page.getByRole("link", { name: "Heat map of this answer" }).first().click();
  await page.locator("h1:visible", { hasText: "Heat map" }).waitFor();
  const map = page.getByRole("application");
  const colours = await map.locator("canvas").evaluate((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const found = new Set();
    for (let at = 0; at < data.length; at += 4)
      if (data[at + 3] > 0) found.add((data[at] >> 4) * 256 + (data[at + 1] >> 4) * 16 + (data[at + 2] >> 4));
    return found.size;
  });
  assert.ok(colours > 4, `the map has ${colours} colours`);
  await map.focus();
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowDown");
  const detail = page.getByRole("region", { name: "Details of a cell" });
  assert.match(await detail.innerText(), /Token\s*2:[\s\S]*Layer\s*1/, "arrow keys reach layer 1 of token 2");
  assert.match(await page.locator("#spoken").textContent(), /^Token 2 .*, layer 1: \S+/);
  for (const [label, site] of [
    ["Attention output (o)", "o_proj"],
    ["Feed-forward inner (down)", "down_proj"],
    ["Attention input (q, k, v)", "q_proj"],
  ]) {
    await page.getByLabel("Sites").selectOption({ label });
    await map.locator("canvas").hover({ position: { x: 150, y: 30 } });
    const told = await detail.innerText();
    assert.ok(told.includes(site) || told.includes("no site of this group"), `${label}: ${told}`);
  }
  await page.getByLabel("Opacity shows").selectOption("margin");
  await page.getByText("The same as a table").click();
  await page.locator(".heat-table tbody tr").nth(1).waitFor();
}

export async function compare(page) {
  await view(page, "compare", "Side by side");
  const [left, right] = ["Left side", "Right side"].map((name) => page.getByRole("group", { name }));
  const name = await chooseModel(left);
  await chooseModel(right, name);
  if (process.env.POLYSKILL_UI_ROUTER)
    await left.getByLabel("Router", { exact: true }).fill(process.env.POLYSKILL_UI_ROUTER);
  await right.getByLabel("Router", { exact: true }).fill(process.env.POLYSKILL_UI_OTHER_ROUTER ?? "arrow");
  await right.getByLabel("Router parameters").fill(process.env.POLYSKILL_UI_OTHER_PARAMS ?? "top_k = 1");
  for (const side of [left, right]) await side.getByLabel("Most tokens").fill("24");
  await page.getByLabel("Prompt").fill(PROMPT);
  await page.getByRole("button", { name: "Ask both" }).click();
  await page.getByRole("heading", { name: "Agreement" }).waitFor({ timeout: ANSWER });
  const replies = page.locator("section:visible .two > .reply");
  assert.equal(await replies.count(), 2, "two answers");
  for (const at of [0, 1])
    assert.ok((await replies.nth(at).locator(".token").count()) > 0, `answer ${at + 1} has tokens`);
  assert.match(await page.locator("section:visible").innerText(), /The answers (are the same|differ)/);
}

/** The views behind the admin key, first without it, then with a wrong one. */
export async function keys(page, { admin }) {
  await view(page, "library", "Library");
  await page.locator("section:visible").getByLabel("Admin key").waitFor();
  page.expectedFailures.push("/admin/");
  await giveKey(page, "not the key");
  await page.getByText("did not take the one given").first().waitFor();
  await page.waitForTimeout(500);
  page.expectedFailures.pop();
  await giveKey(page, admin);
  await page.locator("section:visible table").first().waitFor();
  const stored = await page.evaluate(() => [Object.keys(sessionStorage), JSON.stringify(localStorage)]);
  assert.ok(
    stored[0].includes("polyskill.admin_key") && !stored[1].includes("key"),
    "the key is in the session storage only",
  );
}

export async function library(page) {
  await view(page, "library", "Library");
  const rows = page.getByRole("region", { name: "Modules" }).locator("tbody tr");
  await rows.first().waitFor();
  assert.match(await rows.first().innerText(), /(in memory|on disk)[\s\S]*(KiB|MiB|B)/);
  await rows
    .first()
    .getByRole("button", { name: /^Unload/ })
    .click();
  const dialog = page.getByRole("dialog");
  assert.match(await dialog.innerText(), /Unload “/, "unloading asks first");
  await dialog.getByRole("button", { name: "Cancel" }).click();
  const pin = rows.first().getByRole("button", { name: /^(Unpin|Pin)/ });
  const before = await pin.textContent();
  await pin.click();
  const after = before === "Pin" ? "Unpin" : "Pin";
  await rows
    .first()
    .getByRole("button", { name: new RegExp(`^${after} `) })
    .click();
  await rows
    .first()
    .getByRole("button", { name: new RegExp(`^${before} `) })
    .waitFor();
}

export async function plugins(page) {
  await view(page, "plugins", "Plugins");
  const rows = page.getByRole("region", { name: "Routers" }).locator("tbody tr");
  await rows.first().waitFor();
  assert.match(await rows.first().innerText(), /[0-9a-f]{8}[\s\S]*(serving|quarantined|out)/);
}

export async function live(page) {
  await view(page, "live", "Live");
  await page.locator(".chart").first().waitFor();
  await view(page, "chat", "Chat");
  await ask(page, PROMPT);
  await view(page, "live", "Live");
  await page.waitForFunction(() => {
    const points = [...document.querySelectorAll(".chart")].map(
      (chart) => chart.querySelector("[data-points]").dataset.points,
    );
    return points.length === 6 && points[0] > 0 && points[3] > 2;
  });
  assert.match(
    await page.locator(".chart").first().getAttribute("aria-label"),
    /Time to first token.*median [\d.,]+ ms/,
  );
}

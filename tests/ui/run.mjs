// Drives the page at /ui through all its views in a headless chromium. See README.md.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import path from "node:path";

import { checkAccessibility, tabOrder } from "./accessibility.mjs";
import * as madeUp from "./made_up.mjs";
import { openPage, servesPage, startBrowser, view } from "./session.mjs";
import * as views from "./views.mjs";

const url = (process.env.POLYSKILL_URL ?? "http://127.0.0.1:8080").replace(/\/$/, "");
const admin = process.env.POLYSKILL_ADMIN_KEY;
const folder = process.argv[2];

const VIEWS = [
  ["chat", "Chat"],
  ["heat-map", "Heat map"],
  ["compare", "Side by side"],
  ["library", "Library"],
  ["plugins", "Plugins"],
  ["live", "Live"],
  ["experiments", "Experiments"],
];
const SIZES = [
  [1280, 800],
  [400, 800],
];
let failed = 0;

async function check(name, run) {
  const started = performance.now();
  try {
    await run();
    console.log(`ok      ${name} (${((performance.now() - started) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}\n        ${String(error.stack ?? error).replaceAll("\n", "\n        ")}`);
  }
}

async function order(page) {
  const found = await tabOrder(page, 10);
  assert.deepEqual(found.slice(0, 8), ["To the content", ...VIEWS.map(([, title]) => title)]);
  assert.deepEqual(found.slice(8), ["Theme", "Keys"]);
}

/** All views in their order with one page; what they leave is then looked at in each theme and size. */
async function drive(browser, files, theme) {
  const opened = await openPage(browser, { url, files, theme, width: 1280, height: 800 });
  const { page, problems } = opened;
  const steps = {
    order,
    chat: views.chat,
    heatMap: views.heatMap,
    compare: views.compare,
    keys: views.keys,
    library: views.library,
    plugins: views.plugins,
    live: views.live,
    experiments: madeUp.experiments,
  };
  for (const [name, step] of Object.entries(steps)) await check(`${theme}: ${name}`, () => step(page, { admin }));
  await check(`${theme}: looks`, () => looks(page, theme));
  await check(`${theme}: no errors, no other hosts`, () => assert.deepEqual(problems, []));
  await opened.close();
}

async function looks(page, theme) {
  for (const [width, height] of SIZES) {
    await page.setViewportSize({ width, height });
    for (const [id, title] of VIEWS) {
      await view(page, id === "experiments" ? "experiments/arrow-or-phatgoose" : id, title);
      await page.waitForTimeout(id === "live" ? 2500 : 300);
      const name = `${id}-${theme}-${width}`;
      await page.evaluate(() => scrollTo(0, 0));
      if (folder) await page.screenshot({ path: path.join(folder, `${name}.png`), fullPage: id !== "chat" });
      await check(`${theme}: accessibility of ${id} at ${width} pixels`, () => checkAccessibility(page, name));
    }
  }
  await themeSwitch(page, theme);
}

async function themeSwitch(page, theme) {
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const before = await ground();
  await page.getByLabel("Theme").selectOption(theme === "light" ? "dark" : "light");
  assert.notEqual(await ground(), before, "the switch changes the theme");
  await page.getByLabel("Theme").selectOption("system");
  assert.equal(await ground(), before, "and back");
}

/** One page of its own for a view with made-up answers. */
async function alone(browser, files, name, step) {
  const opened = await openPage(browser, { url, files, theme: "light", width: 1280, height: 800 });
  await check(`made up: ${name}`, async () => {
    await step(opened.page);
    assert.deepEqual(opened.problems, []);
  });
  await opened.close();
}

if (!admin) throw new Error("POLYSKILL_ADMIN_KEY is not set; start the server with --admin-key");
if (folder) mkdirSync(folder, { recursive: true });
const files = !(await servesPage(url));
console.log(files ? "the server has no /ui: the files of the repository stand in" : "the server's own /ui");
const browser = await startBrowser();
for (const theme of ["light", "dark"]) await drive(browser, files, theme);
await alone(browser, files, "hostile names and a fallback", madeUp.hostile);
await alone(browser, files, "a server that wants a key", madeUp.refused);
await browser.close();
console.log(failed ? `${failed} failed` : "all passed");
process.exitCode = failed ? 1 : 0;

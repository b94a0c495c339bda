// A browser on the page: starts chromium, opens the page in a theme and size, and notes what must not happen.

import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

const FILES = path.join(path.dirname(fileURLToPath(import.meta.url)), "../../host/server/ui");
const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css" };
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:";
const BROWSERS = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

export function startBrowser() {
  const found = process.env.CHROMIUM ?? BROWSERS.find((one) => existsSync(one));
  if (!found) throw new Error("no chromium: install it, or name it in CHROMIUM");
  const options = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
  return chromium.launch({ executablePath: found, args: options });
}

/** Whether the server has the page itself; where it does not, the files of the repository stand in. */
export async function servesPage(url) {
  const reply = await fetch(`${url}/ui`);
  return reply.ok;
}

async function standIn(route) {
  const name = path.basename(new URL(route.request().url()).pathname);
  const file = path.join(FILES, name === "ui" ? "index.html" : name);
  if (!existsSync(file)) return route.fulfill({ status: 404, body: "no such file" });
  const headers = { "Content-Type": TYPES[path.extname(file)], "Content-Security-Policy": POLICY };
  return route.fulfill({ headers, body: readFileSync(file) });
}

/** A fresh page. `problems` collects console errors, exceptions and requests to other hosts. */
export async function openPage(browser, { url, files, theme, width, height }) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: theme });
  const apiKey = process.env.POLYSKILL_API_KEY;
  if (apiKey) await context.addInitScript((key) => sessionStorage.setItem("polyskill.key", key), apiKey);
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  const problems = [];
  const expected = (at) => page.expectedFailures.some((part) => at.includes(part));
  page.expectedFailures = [];
  page.on("pageerror", (error) => problems.push(`exception: ${error.message}`));
  page.on("console", (message) => {
    const at = message.location().url;
    if (["error", "warning"].includes(message.type()) && !expected(at))
      problems.push(`${message.type()}: ${message.text()} (${at})`);
  });
  page.on("request", (request) => {
    const address = request.url();
    if (!address.startsWith("data:") && new URL(address).origin !== new URL(url).origin)
      problems.push(`request to ${address}`);
  });
  if (files) await page.route((address) => address.pathname === "/ui" || address.pathname.startsWith("/ui/"), standIn);
  await page.goto(`${url}/ui`);
  return { page, problems, close: () => context.close() };
}

/** Opens a view by its hash and waits for its heading. */
export async function view(page, id, title) {
  await page.evaluate((hash) => (location.hash = hash), `#/${id}`);
  await page.locator("h1:visible", { hasText: title }).waitFor();
}

/** Gives the admin key through the dialog. */
export async function giveKey(page, admin) {
  await page.getByRole("button", { name: "Keys" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Admin key").fill(admin);
  await dialog.getByRole("button", { name: "Use these" }).click();
}

// Accessibility basics of what is shown: names of controls, landmarks, order of headings, contrast, no sideways scroll.

import assert from "node:assert/strict";

/** Runs in the page: controls that have no name. */
function unnamed() {
  const shown = (node) => node.checkVisibility({ visibilityProperty: true });
  const name = (node) =>
    node.getAttribute("aria-label") ||
    node.labels?.[0]?.textContent ||
    node.textContent ||
    document.getElementById(node.getAttribute("aria-labelledby"))?.textContent ||
    "";
  const wanted = "a[href], button, input, select, textarea, summary, [tabindex='0'], [role]:not([role=status])";
  const found = [...document.querySelectorAll(wanted)].filter(shown);
  return found.filter((node) => !name(node).trim()).map((node) => node.outerHTML.slice(0, 120));
}

/** Runs in the page: levels of the visible headings, in order. */
function headings() {
  const found = [...document.querySelectorAll("h1, h2, h3, h4")].filter((node) => node.checkVisibility());
  return found.map((node) => Number(node.tagName[1]));
}

/** Runs in the page: texts whose contrast is below what AA wants. */
function faint() {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    pen.clearRect(0, 0, 1, 1);
    for (const colour of colours) {
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
    }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (colour) => {
    const [red, green, blue] = colour
      .map((part) => part / 255)
      .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const grounds = (node) => (node ? [...grounds(node.parentElement), getComputedStyle(node).backgroundColor] : []);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    const hidden =
      !node.data.trim() ||
      !parent.checkVisibility() ||
      parent.closest(".for-readers, option, script, title, button:disabled");
    if (hidden) continue;
    const style = getComputedStyle(parent);
    const under = grounds(parent);
    const ink = parent.closest("svg") ? style.fill : style.color;
    const [one, other] = [light(over(under)), light(over([...under, ink]))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5))
      found.push(`${contrast.toFixed(2)}: ${node.data.trim().slice(0, 40)} (${parent.className || parent.tagName})`);
  }
  return [...new Set(found)];
}

export async function checkAccessibility(page, where) {
  assert.deepEqual(await page.evaluate(unnamed), [], `${where}: controls without a name`);
  const levels = await page.evaluate(headings);
  assert.equal(levels.filter((level) => level === 1).length, 1, `${where}: one h1`);
  levels.forEach((level, at) =>
    assert.ok(level <= (levels[at - 1] ?? 0) + 1, `${where}: headings ${levels} skip a level`),
  );
  assert.deepEqual(await page.evaluate(faint), [], `${where}: contrast`);
  for (const role of ["banner", "navigation", "main"]) {
    assert.equal(await page.getByRole(role).count(), 1, `${where}: landmark ${role}`);
  }
  const [wide, room] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(wide <= room, `${where}: ${wide} pixels wide in a window of ${room}`);
}

/** Walks the start of the tab order; returns what has the focus, in words. */
export async function tabOrder(page, steps) {
  await page.evaluate(() => {
    document.activeElement?.blur();
    getSelection().removeAllRanges();
    scrollTo(0, 0);
  });
  const found = [];
  for (let step = 0; step < steps; step += 1) {
    await page.keyboard.press("Tab");
    found.push(
      await page.evaluate(() => {
        const node = document.activeElement;
        const ring = getComputedStyle(node).outlineStyle !== "none";
        return `${(node.labels?.[0]?.textContent || node.textContent).trim()}${ring ? "" : " (no ring)"}`;
      }),
    );
  }
  return found;
}

// The one tooltip of the page. What it tells is also in the label of what it belongs to, so it is hidden from
// screen readers.

import { element, fill } from "./dom.js";

let tip = null;
let anchor = null;

function made() {
  if (!tip) {
    tip = element("div", { class: "tip", "aria-hidden": "true", hidden: true });
    document.body.append(tip);
    document.addEventListener("scroll", () => (anchor instanceof Node && !tip.hidden ? place() : hideTip()), true);
  }
  return tip;
}

/** Shows it below a node, or below a rectangle. */
export function showTip(beside, ...content) {
  fill(made(), content);
  anchor = beside;
  tip.hidden = false;
  place();
}

function place() {
  const box = anchor instanceof Node ? anchor.getClientRects()[0] : anchor;
  if (!box || box.bottom < 0 || box.top > innerHeight) return hideTip();
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, innerWidth - width - 8));
  const below = box.bottom + 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${below + height > innerHeight ? Math.max(8, box.top - height - 6) : below}px`;
}

export function hideTip() {
  if (tip) tip.hidden = true;
}

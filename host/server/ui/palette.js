// Gives each module a hue, a line style and a short code, so that colour is never the only difference. What a module
// got stays with it while the page is open.

export const HUES = 8;
const STYLES = ["solid", "dashed", "dotted", "double"];
const marks = new Map();
const codes = new Set();

/** A module's mark: hue number, style number, code. Hue and style together are new for 32 modules. */
export function mark(name) {
  let found = marks.get(name);
  if (!found) {
    const at = marks.size;
    const style = (at + Math.floor(at / HUES)) % STYLES.length;
    found = { hue: at % HUES, style, code: newCode(name) };
    marks.set(name, found);
  }
  return found;
}

/** Gives marks in the order of the names, so that the library looks the same in each session. */
export function register(names) {
  names.forEach(mark);
}

/** Two letters: the first letters of the name's words, else the first two, else a letter and a number. */
function newCode(name) {
  const expert = /^expert (\d+)$/.exec(name);
  if (expert) return `E${expert[1]}`;
  const words = name.split(/[^\p{L}\p{N}]+/u).filter(Boolean);
  const letters = [...(words[0] ?? "?")];
  const candidates = [
    words.length > 1 ? [...words[0]][0] + [...words.at(-1)][0] : "",
    letters[0] + (letters[1] ?? ""),
    letters[0] + (letters.at(-1) ?? ""),
  ].map((code) => code.toUpperCase());
  let code = candidates.find((one) => one.length > 1 && !codes.has(one));
  for (let number = 1; !code; number += 1) {
    const numbered = `${letters[0].toUpperCase()}${number}`;
    if (!codes.has(numbered)) code = numbered;
  }
  codes.add(code);
  return code;
}

/** Classes that draw a module's mark, see style.css. */
export function markClass(name) {
  const { hue, style } = mark(name);
  return `mark hue-${hue} line-${STYLES[style]}`;
}

let probe = null;

/** The hue's colour in the theme of now, for a canvas. */
export function colour(name) {
  probe ??= document.getElementById("probe");
  probe.className = `hue-${mark(name).hue}`;
  return getComputedStyle(probe).color;
}

/** The number of a module's line style, which the heat map draws as hatching. */
export function pattern(name) {
  return mark(name).style;
}

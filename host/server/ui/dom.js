// Small helpers to build HTML and SVG. Text goes in as text nodes only, never as markup, since names and answers
// come from the network.

const SVG = "http://www.w3.org/2000/svg";

/** Sets attributes, properties that start with "on" as listeners, and `class`. Null and false are left out. */
function assign(node, attributes) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

/** An HTML element with attributes and children. */
export function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  append(node, children);
  assign(node, attributes);
  return node;
}

/** An SVG element with attributes and children. */
export function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  append(node, children);
  assign(node, attributes);
  return node;
}

/** Replaces all children. */
export function fill(node, ...children) {
  node.replaceChildren();
  return append(node, children);
}

/** A labelled control: the label stands above it. */
export function field(label, control, hint) {
  control.id ||= `field-${(field.count = (field.count ?? 0) + 1)}`;
  const parts = [element("label", { for: control.id }, label), control];
  if (hint) {
    const text = element("p", { class: "hint", id: `${control.id}-hint` }, hint);
    control.setAttribute("aria-describedby", text.id);
    parts.push(text);
  }
  return element("div", { class: "field" }, parts);
}

export function button(label, action, attributes) {
  return element("button", { type: "button", ...attributes, onclick: action }, label);
}

/** A message in words: kinds are info, warning and error. */
export function notice(kind, ...text) {
  return element("p", { class: `notice ${kind}`, role: kind === "error" ? "alert" : "status" }, text);
}

/** A table from column names and rows of cells; a cell is text or a node. The wrapper scrolls sideways. */
export function table(caption, columns, rows) {
  const head = columns.map((name) => element("th", { scope: "col" }, name));
  const body = rows.map((cells) => {
    const [first, ...rest] = cells;
    const others = rest.map((cell) => element("td", numeric(cell) ? { class: "number" } : null, cell));
    return element("tr", null, element("th", { scope: "row" }, first), others);
  });
  const whole = element(
    "table",
    null,
    element("caption", { class: "for-readers" }, caption),
    element("thead", null, element("tr", null, head)),
    element("tbody", null, body),
  );
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, whole);
}

function numeric(cell) {
  return typeof cell === "number" || (typeof cell === "string" && /^-?[\d.,]+( ?[%a-zA-Z/]{1,4})?$/.test(cell));
}

/** Pairs of a term and its value. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return element(
    "dl",
    { class: "facts" },
    shown.map(([term, value]) => element("div", null, element("dt", null, term), element("dd", null, value))),
  );
}

let spoken = null;

/** Says a text to screen readers. */
export function announce(text) {
  spoken ??= document.getElementById("spoken");
  spoken.textContent = text;
}

// Where people give the keys: a dialog for both, and a small form where a view needs the admin key.

import { key, setKey } from "./api.js";
import { button, element, field, fill, notice } from "./dom.js";

const ASKED = "Kept in this tab only, until it is closed.";

function keyInput() {
  return element("input", { type: "password", autocomplete: "off", spellcheck: "false" });
}

/** The dialog behind “Keys”. */
export function keyDialog() {
  const inputs = { ordinary: keyInput(), admin: keyInput() };
  const dialog = element("dialog", { "aria-labelledby": "keys-title" });
  const save = (event) => {
    event.preventDefault();
    Object.entries(inputs).forEach(([kind, input]) => setKey(kind, input.value.trim()));
    dialog.close();
  };
  const forget = () => {
    Object.keys(inputs).forEach((kind) => setKey(kind, ""));
    dialog.close();
  };
  fill(
    dialog,
    element(
      "form",
      { onsubmit: save },
      element("h2", { id: "keys-title" }, "Keys"),
      field("API key", inputs.ordinary, "For chat, models and metrics, where the server wants one."),
      field("Admin key", inputs.admin, "For modules, plugins and experiments."),
      element("p", { class: "hint" }, ASKED),
      element(
        "div",
        { class: "row" },
        element("button", { type: "submit", class: "primary" }, "Use these"),
        button("Forget both", forget),
        button("Cancel", () => dialog.close()),
      ),
    ),
  );
  document.body.append(dialog);
  return () => {
    Object.entries(inputs).forEach(([kind, input]) => (input.value = key(kind)));
    dialog.showModal();
  };
}

/** Asks for a key in place, with what the server said. */
export function askForKey(kind, said) {
  const input = keyInput();
  const name = kind === "admin" ? "Admin key" : "API key";
  const use = (event) => {
    event.preventDefault();
    if (input.value.trim()) setKey(kind, input.value.trim());
  };
  return element(
    "form",
    { class: "panel key-form", onsubmit: use },
    said && notice("warning", said),
    field(name, input, ASKED),
    element("button", { type: "submit", class: "primary" }, "Use this key"),
  );
}

/** A failure in words; where a key helps, with the form to give it. */
export function failed(what, error) {
  if (error.status === 401) return askForKey(error.kind, `${what}: ${error.message}`);
  return notice("error", `${what}: `, error.message);
}

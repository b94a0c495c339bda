// What views over admin routes share: they ask for the key, load when they are shown, and say what failed.

import { key, onKey } from "./api.js";
import { button, element, fill } from "./dom.js";
import { askForKey, failed } from "./keys.js";

/** A view that calls `load(argument)` for its content, when it is shown, refreshed or given another key. */
export function adminView(what, intro, load) {
  const content = element("div");
  const state = { argument: "", visible: false, turn: 0 };
  const refresh = async () => {
    if (!state.visible) return;
    if (!key("admin")) {
      fill(content, askForKey("admin", `${what} are behind the admin key of the server (serve --admin-key).`));
      return;
    }
    const turn = (state.turn += 1);
    content.setAttribute("aria-busy", "true");
    const shown = await load(state.argument, refresh).catch((error) => failed(what, error));
    if (turn !== state.turn) return;
    fill(content, shown);
    content.removeAttribute("aria-busy");
  };
  onKey((kind) => kind === "admin" && refresh());
  const bar = element("div", { class: "row bar" }, element("p", { class: "hint" }, intro), button("Refresh", refresh));
  return {
    node: element("div", null, bar, content),
    show: (argument) => {
      Object.assign(state, { argument, visible: true });
      refresh();
    },
    hide: () => (state.visible = false),
  };
}

/** A button for a change: it asks first where `question` is given, and says what failed beside it. */
export function changeButton(label, question, change, done, attributes) {
  const said = element("span", { class: "said", role: "status" });
  const run = async () => {
    if (question && !(await confirmed(question, label))) return;
    fill(said, "…");
    try {
      await change();
      fill(said);
      await done();
    } catch (error) {
      fill(said, element("span", { class: "bad" }, error.message));
    }
  };
  return element("span", { class: "change" }, button(label, run, attributes), said);
}

/** A question with two answers. */
function confirmed(question, label) {
  const dialog = element("dialog", { "aria-label": label }, element("p", null, question));
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.append(
      element(
        "div",
        { class: "row" },
        button(label, () => dialog.close("yes"), { class: "danger" }),
        button("Cancel", () => dialog.close(""), { autofocus: true }),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    dialog.showModal();
  });
}

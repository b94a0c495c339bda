// Starts the page: the views by hash route, the theme, the keys.

import { element, fill } from "./dom.js";
import { keyDialog } from "./keys.js";
import { refreshChoices } from "./settings.js";
import { hideTip } from "./tip.js";
import * as chat from "./view-chat.js";
import * as compare from "./view-compare.js";
import * as experiments from "./view-experiments.js";
import * as heatMap from "./view-heat-map.js";
import * as library from "./view-library.js";
import * as live from "./view-live.js";
import * as plugins from "./view-plugins.js";

const VIEWS = [
  { id: "chat", title: "Chat", create: chat.create },
  { id: "heat-map", title: "Heat map", create: heatMap.create },
  { id: "compare", title: "Side by side", create: compare.create },
  { id: "library", title: "Library", create: library.create },
  { id: "plugins", title: "Plugins", create: plugins.create },
  { id: "live", title: "Live", create: live.create },
  { id: "experiments", title: "Experiments", create: experiments.create },
];
const THEME = "polyskill.theme";

const main = document.querySelector("main");
let current = null;

function links() {
  fill(
    document.getElementById("views"),
    VIEWS.map((view) => {
      view.link = element("a", { href: `#/${view.id}` }, view.title);
      return element("li", null, view.link);
    }),
  );
}

/** The part of the hash after the view's name. */
function route() {
  const [, id = "", ...rest] = location.hash.split("/");
  let argument = rest.join("/");
  try {
    argument = decodeURIComponent(argument);
  } catch {
    // Not a valid escape: it is taken as it stands.
  }
  return { view: VIEWS.find((one) => one.id === id) ?? VIEWS[0], argument };
}

function open(view) {
  if (view.made) return;
  view.made = view.create();
  view.heading = element("h1", { tabindex: "-1" }, view.title);
  view.section = element("section", { "aria-label": view.title }, view.heading, view.made.node);
  main.append(view.section);
}

function navigate(moveFocus) {
  const { view, argument } = route();
  hideTip();
  current?.made.hide?.();
  VIEWS.forEach((one) => {
    if (one.section) one.section.hidden = one !== view;
    if (one === view) one.link.setAttribute("aria-current", "page");
    else one.link.removeAttribute("aria-current");
  });
  open(view);
  current = view;
  document.title = `${view.title} – polyskill`;
  view.made.show?.(argument);
  if (moveFocus) {
    view.heading.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

function theme() {
  const choice = document.getElementById("theme");
  const apply = () => {
    if (choice.value === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice.value;
    document.dispatchEvent(new Event("themechange"));
  };
  try {
    choice.value = localStorage.getItem(THEME) ?? "system";
  } catch {
    // Without storage the system's theme holds.
  }
  if (!choice.value) choice.value = "system";
  choice.addEventListener("change", () => {
    try {
      localStorage.setItem(THEME, choice.value);
    } catch {
      // The choice then holds for this page only.
    }
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  apply();
}

links();
theme();
document.getElementById("keys").addEventListener("click", keyDialog());
// The link to the content must not change the route.
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  current.heading.focus();
});
addEventListener("hashchange", () => navigate(true));
refreshChoices();
navigate(false);

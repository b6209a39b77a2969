// SPDX-License-Identifier: GPL-2.0-or-later
// Elements and words. Whatever is shown becomes a text node or an attribute, never markup.
import { Failure } from "./api.js";
import { S } from "./strings.js";

const SVG = "http://www.w3.org/2000/svg";

const NAMES = ["aria-label", "title", "alt", "placeholder"];
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;

/** A text with all that is not seen, or turns the direction of writing, written out. */
export function visible(text) {
  return text.replace(UNSEEN, (letter) => {
    const number = letter.codePointAt(0);
    return number < 256 ? `\\x${number.toString(16).padStart(2, "0")}` : `\\u${number.toString(16).padStart(4, "0")}`;
  });
}

const shown = (child) => (child instanceof Node ? child : visible(String(child)));
const flat = (children) => children.flat(3).filter((child) => child != null && child !== false).map(shown);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else if (NAMES.includes(name)) element.setAttribute(name, visible(String(value)));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...flat(children));
  return element;
}

/** An element; `on...` attributes are listeners. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function put(place, ...children) {
  place.replaceChildren(...flat(children));
}

const DRAWN = ["svg", "g", "rect", "line", "path", "circle", "text", "title"];
const BUILT = ["div", "p", "span", "b", "i", "section", "h3", "table", "caption", "thead", "tbody", "tr", "th", "td", "ul", "li"];
const GIVEN = /^(class|role|scope|tabindex|viewBox|preserveAspectRatio|text-anchor|d|r|rx|cx|cy|x|y|x1|x2|y1|y2|width|height|data-day|aria-(label|hidden))$/;

/** A tree that the server sent, see backup_vm/reporting/tree.py, as elements: those that pictures and
 * tables are made of, and no others. */
export function grown(tree) {
  if (typeof tree === "string") return tree;
  const [tag, attributes, ...children] = tree;
  const make = DRAWN.includes(tag) ? svg : BUILT.includes(tag) ? h : null;
  if (make === null || !Object.keys(attributes).every((name) => GIVEN.test(name))) throw new Failure([S.serverGone], 0);
  return make(tag, attributes, children.map(grown));
}

/** A table that scrolls in itself on a narrow screen. */
export function table(caption, heads, rows, numbers = []) {
  const kind = (index) => (numbers.includes(index) ? "number" : undefined);
  const head = heads.map((text, index) => h("th", { scope: "col", class: kind(index) },
    text || h("span", { class: "hidden" }, S.acts)));
  const body = rows.map((cells) =>
    h("tr", {}, cells.map((cell, index) =>
      index === 0
        ? h("th", { scope: "row" }, cell ?? "")
        : h("td", { class: kind(index) }, cell ?? ""))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

export function button(text, action, attributes = {}) {
  return h("button", { type: "button", onclick: action, ...attributes }, text);
}

let ids = 0;

/** A labelled field. */
export function field(label, control, hint = "") {
  control.id ||= `field-${(ids += 1)}`;
  const more = hint && h("small", { id: `${control.id}-hint` }, hint);
  if (more) control.setAttribute("aria-describedby", more.id);
  return h("p", { class: "field" }, h("label", { for: control.id }, label), control, more || null);
}

export function check(label, checked, attributes = {}) {
  const box = h("input", { type: "checkbox", checked, ...attributes });
  return { box, row: h("label", { class: "check" }, box, " ", label) };
}

/** Lines that say what went wrong. */
export function trouble(error) {
  return h("div", { class: "bad", role: "alert" },
    (error.errors ?? [String(error)]).map((line) => h("p", {}, line)));
}

export function say(text) {
  document.getElementById("live").textContent = text;
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "?";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (bytes >= 1024 && at < units.length - 1) {
    bytes /= 1024;
    at += 1;
  }
  return `${at ? bytes.toFixed(1) : bytes} ${units[at]}`;
}

/** A time of UTC, as the sessions' names are. */
export function when(seconds) {
  if (seconds === null || seconds === undefined) return S.never;
  const date = new Date(seconds * 1000);
  if (Number.isNaN(date.getTime())) return "?"; // no clock says so, but what others write may
  return date.toISOString().slice(0, -8).replace("T", " ");
}

export function ago(seconds) {
  if (seconds === null || seconds === undefined) return S.never;
  const past = Date.now() / 1000 - seconds;
  if (past < -90) return S.inFuture(when(seconds));
  if (past < 90) return S.justNow;
  if (past < 5400) return S.minutesAgo(Math.round(past / 60));
  if (past < 129600) return S.hoursAgo(Math.round(past / 3600));
  return S.daysAgo(Math.round(past / 86400));
}

/** A question; resolves to whether the answer is yes. */
export function confirm(title, parts, yes, mustCheck = "") {
  return new Promise((resolve) => {
    const go = button(yes, () => dialog.close("yes"), { class: "primary", disabled: !!mustCheck });
    const understood = mustCheck
      ? check(mustCheck, false, { onchange: (event) => (go.disabled = !event.target.checked) })
      : null;
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" },
      h("h2", { id: "dialog-title" }, title), parts, understood && h("p", {}, understood.row),
      h("p", { class: "buttons" }, button(S.back, () => dialog.close("no")), go));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

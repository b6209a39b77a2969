// SPDX-License-Identifier: GPL-2.0-or-later
// The frame: pages by the address's fragment, and news of work that go to whoever listens.
import { get } from "./api.js";
import { h, put, say, trouble } from "./dom.js";
import { S } from "./strings.js";

const PAGES = Object.keys(S.pages);
const jobs = new Map();
const listeners = new Set();
let leave = null;
let shows = 0;

/** Work as it is now, the newest first, whenever it changes; returns how to stop. */
export function watch(listener) {
  listeners.add(listener);
  listener([...jobs.values()].reverse());
  return () => listeners.delete(listener);
}

/** Call when work ended that may have changed the archive; returns how to stop. */
export function onDone(listener) {
  document.addEventListener("work-ended", listener);
  return () => document.removeEventListener("work-ended", listener);
}

/** The address of a page. JSON keeps halves of surrogates, which names that are no UTF-8 have. */
export function address(page, query = {}) {
  return `#${page}?${encodeURIComponent(JSON.stringify(query))}`;
}

export function goTo(page, query = {}) {
  location.hash = address(page, query);
}

function asked(text) {
  try {
    const found = Object.entries(JSON.parse(decodeURIComponent(text)));
    return Object.fromEntries(found.filter(([, value]) => typeof value === "string"));
  } catch {
    return {};
  }
}

const links = new Map(PAGES.map((page) => [page,
  h("a", { href: `#${page}` }, S.pages[page], h("span", {}), h("span", { class: "hidden" }))]));

/** The links stay the same elements: a click or the focus is not lost when work begins or ends. */
function drawNavigation(current) {
  const open = [...jobs.values()].filter((job) => ["queued", "running"].includes(job.state)).length;
  for (const [page, link] of links) {
    if (page === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const [badge, words] = links.get("work").children;
  badge.textContent = open ? ` (${open})` : "";
  words.textContent = open ? ` ${S.working(open)}` : "";
}

function current() {
  const [page, query = ""] = location.hash.slice(1).split("?");
  return { page: PAGES.includes(page) ? page : "overview", query: asked(query) };
}

async function show(first) {
  const { page, query } = current();
  const mine = (shows += 1);
  leave?.();
  leave = null;
  // the browser's back button leads away from a question, too
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close("no");
  drawNavigation(page);
  document.title = S.title(S.pages[page]);
  const main = document.getElementById("main");
  put(main, h("h1", {}, S.pages[page]));
  if (!first) main.focus();
  try {
    const { draw } = await import(`./${page}.js`);
    if (mine === shows) leave = draw(main, query);
  } catch (error) {
    if (mine === shows) main.append(trouble(error));
  }
}

const gone = () => document.getElementById("gone").dataset.said;

/** That the server does not answer, as long as it does not. */
function drawGone(error) {
  const place = document.getElementById("gone");
  const said = error ? error.message : "";
  if ((gone() ?? "") === said) return; // it is read out once
  place.dataset.said = said;
  put(place, error ? trouble(error) : null);
}

async function follow() {
  let since = 0;
  for (;;) {
    try {
      if (gone()) { // news may be a while in coming
        await get("here");
        drawGone(null);
      }
      const news = await get("news", { since });
      const before = new Map(jobs);
      since = news.revision;
      for (const job of news.jobs) jobs.set(job.id, job);
      for (const id of jobs.keys()) if (!news.ids.includes(id)) jobs.delete(id);
      drawNavigation(current().page);
      for (const listener of listeners) listener([...jobs.values()].reverse());
      const ended = news.jobs.filter((job) => job.ended !== null &&
        ["queued", "running"].includes(before.get(job.id)?.state));
      for (const job of ended) say(S.ended(S.kinds[job.kind], S.states[job.state]));
      if (ended.length) document.dispatchEvent(new Event("work-ended"));
    } catch (error) {
      if (error.code === 403 || error.code === 0) drawGone(error);
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
}

put(document.getElementById("nav"), [...links.values()]);
put(document.getElementById("brand"), S.brand);
put(document.getElementById("skip"), S.skip);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
document.getElementById("nav").setAttribute("aria-label", S.navigation);
window.addEventListener("hashchange", () => show(false));
show(true);
follow();

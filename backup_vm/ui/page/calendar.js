// SPDX-License-Identifier: GPL-2.0-or-later
// The server's picture of a year of days, as a grid that arrow keys move in.
import { button, grown, h, put } from "./dom.js";
import { S } from "./strings.js";

const YEAR = 371;
const MOVES = { ArrowUp: -1, ArrowDown: 1, ArrowLeft: -7, ArrowRight: 7 };

/** `found`: what the server says of days; `choose(day)` is called for one, `turn(last)` for the year
 * that ends with that day. */
export function drawCalendar(place, found, until, choose, turn) {
  const { calendar, legend, oldest, newest, last } = found;
  const chosen = until === null ? null : Math.floor(until / 86400);
  const focused = place.contains(document.activeElement) && document.activeElement.dataset.day;
  const grid = grown(calendar);
  const days = [...grid.querySelectorAll("[data-day]")];
  const first = Number(days[0].dataset.day);
  const entry = days.find((day) => Number(day.dataset.day) === chosen) ?? days.at(-1);
  grid.setAttribute("role", "grid");
  for (const week of grid.children) if (!week.ariaHidden) week.setAttribute("role", "row");
  for (const day of days) {
    day.setAttribute("role", "gridcell");
    day.setAttribute("aria-label", day.textContent);
    day.setAttribute("aria-selected", String(Number(day.dataset.day) === chosen));
    day.setAttribute("tabindex", day === entry ? "0" : "-1");
  }
  grid.addEventListener("click", (event) => {
    const day = event.target.closest("[data-day]");
    if (day) choose(Number(day.dataset.day));
  });
  grid.addEventListener("keydown", (event) => {
    const at = Number(event.target.dataset.day);
    const next = MOVES[event.key] && grid.querySelector(`[data-day="${at + MOVES[event.key]}"]`);
    if (next) {
      event.target.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    } else if (["Enter", " "].includes(event.key)) choose(at);
    else return;
    event.preventDefault();
  });
  put(place, h("h2", {}, S.calendar), h("div", { class: "scroll" }, grid), grown(legend),
    h("p", { class: "dim" }, S.calendarHelp),
    h("p", { class: "buttons" },
      button(S.yearBefore, () => turn(last - YEAR), { disabled: oldest >= first }),
      button(S.yearAfter, () => turn(Math.min(last + YEAR, newest)), { disabled: last >= newest })));
  if (focused) grid.querySelector(`[data-day="${focused}"]`)?.focus();
  const scrolled = place.querySelector(".scroll");
  scrolled.scrollLeft = scrolled.scrollWidth;
}

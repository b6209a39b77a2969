// SPDX-License-Identifier: GPL-2.0-or-later
// A year of days, a week a column, as a grid that arrow keys move in.
import { button, h, put } from "./dom.js";
import { S } from "./strings.js";

const YEAR = 371;
const MOVES = { ArrowUp: -1, ArrowDown: 1, ArrowLeft: -7, ArrowRight: 7 };
let last = null;

function date(day) {
  return new Date(day * 86400000).toISOString().slice(0, 10);
}

/** `days`: sessions by number of the day since 1970; `choose(day)` is called for one. */
export function drawCalendar(place, days, until, choose) {
  const known = Object.keys(days).map(Number);
  const today = Math.floor(Date.now() / 86400000);
  const newest = Math.max(today, ...known.slice(-1));
  last = last ?? newest;
  const chosen = until === null ? null : Math.floor(until / 86400);
  // 1 January 1970 was a Thursday; a column begins on Monday
  const first = last - YEAR + 1 - ((last - YEAR + 1 + 3) % 7);
  const cells = [];
  for (let day = first; day <= last; day += 1) {
    const count = days[day] ?? 0;
    const level = count > 4 ? 3 : count > 1 ? 2 : count;
    cells.push(button("", () => choose(day), {
      class: `level${level}`, role: "gridcell", "data-day": day, "aria-label": S.day(date(day), count),
      title: S.day(date(day), count), "aria-selected": day === chosen ? "true" : "false",
      tabindex: day === (chosen ?? last) ? "0" : "-1",
    }));
  }
  const focused = place.contains(document.activeElement) && document.activeElement.dataset.day;
  const grid = h("div", { class: "calendar", role: "row", onkeydown: (event) => {
    const by = MOVES[event.key];
    const next = by && grid.querySelector(`[data-day="${Number(event.target.dataset.day) + by}"]`);
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  } }, cells);
  const turn = (by) => () => {
    last = Math.min(last + by, newest);
    drawCalendar(place, days, until, choose);
  };
  const oldest = known.length ? known.reduce((a, b) => Math.min(a, b)) : newest;
  put(place, h("h2", {}, S.calendar),
    h("div", { class: "scroll" }, h("div", { role: "grid", "aria-label": S.calendar }, grid)),
    h("p", { class: "dim" }, `${date(first)} – ${date(last)}. ${S.calendarHelp}`),
    h("p", { class: "buttons" },
      button(S.yearBefore, turn(-YEAR), { disabled: oldest >= first }),
      button(S.yearAfter, turn(YEAR), { disabled: last >= newest })));
  if (focused) grid.querySelector(`[data-day="${focused}"]`)?.focus();
  const scrolled = place.querySelector(".scroll");
  scrolled.scrollLeft = scrolled.scrollWidth;
}

// SPDX-License-Identifier: GPL-2.0-or-later
// What takes the space, what would free it, and growth.
import { get } from "./api.js";
import { goTo } from "./app.js";
import { button, h, put, size, svg, table, trouble, when } from "./dom.js";
import { S } from "./strings.js";

const WIDE = 900;
const HIGH = 220;

export function draw(main) {
  const body = h("div", {}, h("p", { class: "dim" }, S.loading));
  main.append(body);
  let live = true;
  get("space").then((found) => live && put(body, drawAll(found)),
    (error) => live && put(body, trouble(error)));
  return () => (live = false);
}

function drawAll({ volumes, largest, stored, free, growth }) {
  const most = Math.max(1, ...volumes.map((volume) => (volume.own ?? 0) + (volume.shared ?? 0)));
  const ratio = (value) => (value === null ? "?" : `${value.toFixed(1)} ×`);
  const sorted = [...volumes].sort((a, b) => b.own - a.own);
  return [
    h("div", { class: "cards" },
      h("div", { class: "card" }, h("b", {}, size(stored)), h("span", {}, S.stored)),
      h("div", { class: "card" }, h("b", {}, size(free)), h("span", {}, S.free))),
    h("h2", {}, S.spaceTitle),
    table(S.spaceTitle, S.spaceHeads, sorted.map((volume) => [volume.name, size(volume.own),
      size(volume.shared), bar(volume, most), ratio(volume.compression), ratio(volume.deduplication),
      String(volume.sessions)]), [1, 2, 4, 5, 6]),
    growth?.length > 1 ? [h("h2", {}, S.growth), chart(growth)] : null,
    h("h2", {}, S.freesTitle), h("p", { class: "dim" }, S.freesHelp),
    largest.length ? table(S.freesTitle, S.freesHeads, largest.map((session) => [session.session,
      session.name, size(session.frees)]), [2]) : h("p", {}, S.freesNone),
    h("p", { class: "buttons" }, button(S.simulator, () => goTo("time"))),
  ];
}

function bar(volume, most) {
  const own = (100 * (volume.own ?? 0)) / most;
  const shared = (100 * (volume.shared ?? 0)) / most;
  return svg("svg", { viewBox: "0 0 100 10", class: "bar", preserveAspectRatio: "none", role: "img",
    "aria-label": S.bar(volume.name, size(volume.own), size(volume.shared)) },
  svg("rect", { class: "own", width: own, height: 10 }),
  svg("rect", { class: "shared", x: own, width: shared, height: 10 }));
}

function chart(points) {
  const [from, to] = [points[0][0], points.at(-1)[0]];
  const top = Math.max(1, points.at(-1)[1]);
  const x = (time) => ((time - from) / Math.max(1, to - from)) * WIDE;
  const y = (bytes) => HIGH - 20 - (bytes / top) * (HIGH - 40);
  const step = Math.max(1, Math.floor(points.length / WIDE));
  const shown = points.filter((_, index) => index % step === 0 || index === points.length - 1);
  const line = shown.map(([time, bytes]) => `${x(time).toFixed(1)},${y(bytes).toFixed(1)}`).join(" ");
  return svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img",
    "aria-label": S.growthLabel(when(from), when(to)) },
  svg("line", { class: "grid", x1: 0, x2: WIDE, y1: y(top), y2: y(top) }),
  svg("line", { class: "grid", x1: 0, x2: WIDE, y1: y(0), y2: y(0) }),
  svg("polygon", { class: "area", points: `0,${y(0)} ${line} ${WIDE},${y(0)}` }),
  svg("polyline", { class: "line", points: line }),
  svg("text", { x: 4, y: y(top) - 5 }, size(top)),
  svg("text", { x: 4, y: HIGH - 4 }, when(from)),
  svg("text", { x: WIDE - 4, y: HIGH - 4, "text-anchor": "end" }, when(to)));
}

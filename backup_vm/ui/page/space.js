// SPDX-License-Identifier: GPL-2.0-or-later
// What takes the space, what would free it, and growth: the pieces that the report has.
import { get } from "./api.js";
import { goTo, onDone } from "./app.js";
import { button, grown, h, put, size, table, trouble } from "./dom.js";
import { S } from "./strings.js";

export function draw(main) {
  const body = h("div", {}, h("p", { class: "dim" }, S.loading));
  main.append(body);
  let live = true;
  const frees = h("div", {}, h("p", { class: "dim" }, S.loading));
  const look = () => get("space").then((found) => {
    if (live) put(body, drawAll(found), frees);
    return get("frees");
  }).then(({ largest }) => live && drawFrees(frees, largest),
    (error) => live && put(body.contains(frees) ? frees : body, trouble(error)));
  look();
  const stop = onDone(look);
  return () => {
    live = false;
    stop();
  };
}

function drawAll({ figures, volumes, growth }) {
  return [
    grown(figures),
    growth && [h("h2", {}, S.growth), grown(growth)],
    h("h2", {}, S.spaceTitle), h("p", { class: "dim" }, S.spaceHelp), grown(volumes),
    h("h2", {}, S.freesTitle), h("p", { class: "dim" }, S.freesHelp),
  ];
}

function drawFrees(place, largest) {
  put(place,
    largest.length ? table(S.freesTitle, S.freesHeads, largest.map((session) => [session.session,
      session.name, size(session.frees)]), [2]) : h("p", {}, S.freesNone),
    h("p", { class: "buttons" }, button(S.seeSimulator, () => goTo("time", { part: "simulator" }))));
}

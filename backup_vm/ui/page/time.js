// SPDX-License-Identifier: GPL-2.0-or-later
// Sessions through time: calendar, a moment, the list with tags and notes, and the simulator.
import { get, post } from "./api.js";
import { address, goTo, onDone } from "./app.js";
import { drawCalendar } from "./calendar.js";
import { ago, button, field, h, put, say, size, table, trouble, when } from "./dom.js";
import { restore } from "./restore.js";
import { drawSimulator } from "./simulator.js";
import { S } from "./strings.js";

const PAGE = 50;
const PIN = "keep";

export function draw(main, query) {
  const number = (text) => (/^\d{1,12}$/.test(text ?? "") ? Number(text) : null);
  const state = { volume: query.volume ?? "", tag: query.tag ?? "", until: number(query.until),
    offset: number(query.offset) ?? 0, last: number(query.last) };
  const volumes = h("select", { onchange: () => choose({ volume: volumes.value }) });
  const tag = h("input", { value: state.tag, onchange: () => choose({ tag: tag.value.trim() }) });
  const calendar = h("div", {});
  const moment = h("div", {});
  const list = h("div", {});
  const simulator = h("section", {});
  const pins = h("p", { class: "warn" });
  const errors = h("div", {});
  main.append(h("div", { class: "row" }, field(S.volume, volumes), field(S.tag, tag)),
    calendar, moment, h("h2", {}, S.sessionList), h("p", { class: "dim" }, S.inClear), pins,
    errors, list, simulator);
  const at = h("input", { type: "datetime-local", onchange: () => {
    choose({ until: at.value ? Date.parse(`${at.value}Z`) / 1000 + 59 : null });
  } });
  let drawn = 0;
  let live = true;

  function choose(news) {
    Object.assign(state, { offset: 0 }, news);
    look();
  }

  /** What was chosen is in the address: the browser's back button comes back to it. */
  function remember() {
    const chosen = Object.entries(state).filter(([, value]) => value);
    history.replaceState(null, "", address("time", Object.fromEntries(chosen.map(([key, value]) => [key, String(value)]))));
  }

  async function look() {
    if (!live) return;
    const mine = (drawn += 1);
    remember();
    try {
      const until = state.until ?? "";
      const [days, page, then] = await Promise.all([
        get("days", { volume: state.volume, last: state.last }),
        get("sessions", { volume: state.volume, tag: state.tag, until, offset: state.offset, limit: PAGE }),
        get("moment", { time: state.until ?? Math.floor(Date.now() / 1000) + 86400 }),
      ]);
      if (!live || mine !== drawn) return;
      drawVolumes(days.volumes);
      drawCalendar(calendar, days, state.until, (day) => choose({ until: day * 86400 + 86399 }),
        (last) => choose({ last }));
      drawMoment(then.volumes);
      drawList(page);
    } catch (error) {
      if (live && mine === drawn) put(list, trouble(error));
    }
  }

  function drawVolumes(names) {
    put(volumes, h("option", { value: "" }, S.everyVolume),
      names.map((name) => h("option", { value: name }, name)));
    volumes.value = state.volume;
  }

  function drawMoment(rows) {
    at.value = state.until === null ? "" : when(state.until).replace(" ", "T");
    put(moment, h("h2", {}, S.momentTitle),
      h("div", { class: "row" }, field(S.moment, at),
        button(S.momentNow, () => choose({ until: null }), { "aria-pressed": state.until === null })),
      table(S.momentTitle, S.momentHeads, rows.map(({ name, session }) =>
        session === null ? [name, S.noSessionYet, "", "", ""]
          : [name, session.session, age(session.time), size(session.size), acts(name, session)]), [3]));
  }

  function age(time) {
    return state.until === null ? ago(time) : ago(time + Date.now() / 1000 - state.until);
  }

  function drawList({ total, sessions }) {
    const end = state.offset + sessions.length;
    const move = (by) => () => {
      state.offset = Math.max(0, state.offset + by);
      look();
    };
    put(list,
      sessions.length ? table(S.sessionList, S.sessionHeads, sessions.map(row), [5, 6])
        : h("p", {}, S.none),
      h("p", { class: "buttons" },
        button(S.newer, move(-PAGE), { disabled: state.offset === 0 }),
        button(S.older, move(PAGE), { disabled: end >= total }),
        total ? h("span", { class: "dim" }, S.range(state.offset + 1, end, total)) : null));
  }

  function row(session) {
    const { name } = session;
    const pinned = session.tags.includes(PIN);
    const others = session.tags.filter((one) => one !== PIN);
    const change = async (news) => {
      try {
        await post("tag", { volume: name, session: session.id, ...news });
        put(errors);
        say(S.saved);
        await look();
      } catch (error) {
        put(errors, trouble(error));
      }
    };
    const pin = button(pinned ? S.pinned : S.pin,
      () => change(pinned ? { remove: [PIN] } : { add: [PIN] }),
      { "aria-pressed": pinned, "aria-label": S.pinOf(name, session.session) });
    const tags = h("input", { value: others.join(" "), "aria-label": S.tagsOf(name, session.session),
      onchange: () => {
        const wanted = tags.value.split(/\s+/).filter(Boolean);
        change({
          add: wanted.filter((one) => !others.includes(one)),
          remove: others.filter((one) => !wanted.includes(one)),
        });
      } });
    const note = h("input", { value: session.note, "aria-label": S.noteOf(name, session.session),
      onchange: () => change({ note: note.value }) });
    return [session.session, name, pin, tags, note, size(session.size),
      [session.full ? S.fullSession : size(session.changed), session.spoilt ? `, ${S.spoilt}` : ""],
      acts(name, session)];
  }

  function acts(name, session) {
    return h("span", { class: "row" },
      button(S.restore, () => restore(name, session).catch((error) => put(errors, trouble(error))),
        { "aria-label": `${S.restore} ${name} ${session.session}` }),
      button(S.browse, () => goTo("files", { volume: name, session: session.session }),
        { "aria-label": `${S.browse} ${name} ${session.session}` }));
  }

  put(list, h("p", { class: "dim" }, S.loading));
  look();
  get("status").then(({ pins: kept }) => live && kept === "lost" && put(pins, S.pinsLost), () => {});
  const stopSimulator = drawSimulator(simulator);
  if (query.part === "simulator") simulator.scrollIntoView();
  const stop = onDone(look);
  return () => {
    live = false;
    stop();
    stopSimulator();
  };
}

// SPDX-License-Identifier: GPL-2.0-or-later
// What pruning by rules would remove, live, before it does.
import { post } from "./api.js";
import { goTo } from "./app.js";
import { button, check, confirm, field, h, put, say, size, table, trouble, when } from "./dom.js";
import { S } from "./strings.js";

const SHOWN = 100;
const WAIT = 250;

export function drawSimulator(place) {
  const fields = Object.entries(S.rules).map(([name, label]) => [name,
    h("input", { type: "number", min: "1", max: "9999", name, oninput: () => soon() }), label]);
  const within = h("input", { name: "keep_within", size: "8", oninput: () => soon() });
  const young = h("input", { name: "min_age", size: "8", placeholder: "3d", oninput: () => soon() });
  const part = h("input", { name: "max_removed", size: "8", placeholder: "50%", oninput: () => soon() });
  const pins = check(S.keepPins, true, { onchange: () => soon() });
  const outcome = h("div", { "aria-live": "polite" }, h("p", { class: "dim" }, S.giveRule));
  const prune = button(S.prune, () => ask(), { disabled: true });
  put(place, h("h2", {}, S.simulator), h("p", { class: "dim" }, S.simulatorHelp),
    h("form", { onsubmit: (event) => event.preventDefault() },
      h("fieldset", {}, h("legend", {}, S.simulator),
        h("div", { class: "row" }, fields.map(([, control, label]) => field(label, control)),
          field(S.within, within, S.withinHint),
          field(S.minAge, young, S.minAgeHint),
          field(S.maxRemoved, part, S.maxRemovedHint)),
        pins.row)),
    outcome, h("p", { class: "buttons" }, prune));
  let timer = null;
  let running = null;
  let plan = null;

  function rules() {
    const given = fields.map(([name, control]) => [name, control.value.trim()]);
    const body = Object.fromEntries([...given, ["keep_within", within.value.trim()]]
      .filter(([, value]) => value));
    if (!Object.keys(body).length) return null;
    if (young.value.trim()) body.min_age = young.value.trim();
    if (part.value.trim()) body.max_removed = part.value.trim();
    return pins.box.checked ? { ...body, keep_tag: ["keep"] } : body;
  }

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(simulate, WAIT);
    plan = null;
    prune.disabled = true;
  }

  async function simulate() {
    running?.abort();
    running = new AbortController();
    const body = rules();
    if (body === null) {
      put(outcome, h("p", { class: "dim" }, S.giveRule));
      return;
    }
    try {
      const found = await post("simulate", body, running.signal);
      plan = { body, found };
      prune.disabled = !found.removed.length;
      drawPlan(outcome, found);
    } catch (error) {
      if (error.name !== "AbortError") put(outcome, trouble(error));
    }
  }

  async function ask() {
    const { body, found } = plan;
    const text = [h("p", {}, S.pruneText(found.removed.length, size(found.freed))), drawLock(found.lock, found.freed)];
    if (!(await confirm(S.pruneTitle, text, S.pruneYes, S.pruneUnderstood))) return;
    try {
      await post("jobs", { kind: "prune", ...body });
      say(S.asked);
      goTo("work");
    } catch (error) {
      put(outcome, trouble(error));
    }
  }

  return () => {
    clearTimeout(timer);
    running?.abort();
  };
}

function name(row) {
  return row.qube ? `${row.qube}/${row.volume}` : row.volume;
}

const PINNED = "tag keep";
const MARKS = ["pinned", "stays", "waits", "goes"];

/** What becomes of a session, in one word: also a class of look and a string. */
function fate(row) {
  if (!row.keep) return "goes";
  if (row.spared) return "waits";
  return row.why.includes(PINNED) ? "pinned" : "stays";
}

function strip(volume, rows) {
  const counts = Object.groupBy(rows, fate);
  const label = S.strip(volume, MARKS.map((mark) => [mark, counts[mark]?.length ?? 0]));
  return [h("div", { class: "name" }, label),
    rows.length > 400 ? null
      : h("div", { class: "strip", role: "img", "aria-label": label },
        rows.map((row) => h("i", { class: fate(row), title: `${row.session}: ${S.fates[fate(row)]}` })))];
}

/** What a store's lock keeps, and until when. */
function drawLock(lock, freed) {
  if (!lock) return null;
  const days = Math.round(lock.retention / 86400);
  return [
    freed ? h("p", { class: "warn" }, S.lockedGoes(size(freed), days, when(Date.now() / 1000 + lock.retention))) : null,
    lock.waiting ? h("p", { class: "warn" }, S.lockedWaits(size(lock.waiting), when(lock.waiting_until))) : null,
  ];
}

function outcomeOf(row) {
  const word = fate(row);
  const look = { goes: "bad", waits: "warn" }[word] ?? "ok";
  const until = row.spared_until ? `, ${S.goesAfter(when(row.spared_until))}` : "";
  return h("span", { class: look }, S.fates[word] + until);
}

function drawPlan(place, { plan = [], removed, freed, held, spared, lock, warnings }) {
  const first = [...plan].sort((a, b) => MARKS.indexOf(fate(b)) - MARKS.indexOf(fate(a))).slice(0, SHOWN);
  const next = plan.map((row) => row.spared_until).filter(Boolean);
  put(place,
    h("p", {}, h("strong", {}, S.simulated(plan.length - removed.length, removed.length, size(freed)))),
    [...new Set([...held, ...warnings])].map((line) => h("p", { class: "warn" }, line)),
    spared ? h("p", {}, S.sparedNow(spared, next.length ? when(Math.min(...next)) : "")) : null,
    drawLock(lock, freed),
    h("p", { class: "key" }, MARKS.map((mark) => [h("i", { class: mark }), h("span", {}, S.fates[mark])])),
    [...Map.groupBy(plan, name)].map(([volume, rows]) => strip(volume, rows)),
    table(S.simulator, S.planHeads, first.map((row) => [row.session, name(row), outcomeOf(row),
      row.why.join(", ") || S.noRuleKeeps])),
    plan.length > SHOWN ? h("p", { class: "dim" }, S.planMore(plan.length - SHOWN)) : null);
}

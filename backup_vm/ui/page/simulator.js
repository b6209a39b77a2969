// SPDX-License-Identifier: GPL-2.0-or-later
// What pruning by rules would remove, live, before it does.
import { post } from "./api.js";
import { goTo } from "./app.js";
import { button, check, confirm, field, h, put, say, size, table, trouble } from "./dom.js";
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
    const text = h("p", {}, S.pruneText(found.removed.length, size(found.freed)));
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

function drawPlan(place, { plan = [], removed, freed }) {
  const volumes = Map.groupBy(plan, name);
  const strips = [...volumes].map(([volume, rows]) => {
    const stay = rows.filter((row) => row.keep).length;
    const label = S.strip(volume, stay, rows.length - stay);
    return [h("div", { class: "name" }, label),
      rows.length > 400 ? null
        : h("div", { class: "strip", role: "img", "aria-label": label },
          rows.map((row) => h("i", { class: row.keep ? "stays" : "goes", title: row.session })))];
  });
  const first = [...plan].sort((a, b) => a.keep - b.keep).slice(0, SHOWN);
  put(place,
    h("p", {}, h("strong", {}, S.simulated(plan.length - removed.length, removed.length, size(freed)))),
    strips,
    table(S.simulator, S.planHeads, first.map((row) => [row.session, name(row),
      h("span", { class: row.keep ? "ok" : "bad" }, row.keep ? S.stays : S.goes),
      row.why.join(", ") || S.noRuleKeeps])),
    plan.length > SHOWN ? h("p", { class: "dim" }, S.planMore(plan.length - SHOWN)) : null);
}

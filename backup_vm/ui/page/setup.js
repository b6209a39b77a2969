// SPDX-License-Identifier: GPL-2.0-or-later
// From nothing to a backup that runs by itself, with a recovery key that is known to open it.
import { get, post } from "./api.js";
import { goTo, onDone } from "./app.js";
import { backUp } from "./overview.js";
import { button, check, field, h, put, say, trouble } from "./dom.js";
import { S } from "./strings.js";

export function draw(main) {
  const body = h("div", {}, h("p", { class: "dim" }, S.loading));
  const word = h("p", { role: "status" });
  main.append(h("p", { class: "dim" }, S.setupHelp), body, word);
  let live = true;

  async function look() {
    const [findings, found, here] = await Promise.all([
      get("doctor").then((row) => row.findings, (error) =>
        error.errors.map((what) => ({ state: "bad", what, remedy: "", topic: "" }))),
      get("status").catch(() => null),
      get("here"),
    ]);
    if (live) put(body, drawSteps(findings, found, here, word, look));
  }
  look();
  const stop = onDone(look);
  return () => {
    live = false;
    stop();
  };
}

function drawSteps(findings, found, here, word, look) {
  const of = (topic) => findings.filter((row) => row.topic === topic);
  const well = (topic) => of(topic).length > 0 && of(topic).every((row) => row.state === "ok");
  const remedies = (rows) => rows.filter((row) => row.state !== "ok")
    .map((row) => [h("p", {}, row.what), row.remedy ? h("code", {}, row.remedy) : null]);
  const status = found?.status;
  const stored = status?.volumes.some((volume) => volume.sessions > 0) ?? false;
  const answers = of("agent").some((row) => row.state === "ok");
  const open = status?.mode === "open";
  const proven = open || Boolean(found?.recovery);
  const step = (name, ready, ...parts) => h("li", { class: "card" },
    h("h2", {}, S.steps[name], " ", h("span", { class: ready ? "ok" : "warn" },
      ready ? S.stepState.done : S.stepState.open)), parts);
  return h("ol", {},
    step("archive", status != null, status
      ? h("p", { class: "name" }, S.archiveLine(status.label, status.path, status.mode))
      : drawInit(here, word)),
    step("agent", answers, answers ? null : remedies(findings.filter((row) => ["agent", ""].includes(row.topic)))),
    step("first", stored, stored ? null : button(S.backupAll, () => backUp([]), { class: "primary", disabled: !answers })),
    step("timer", well("timer"), remedies(of("timer")), here.qube === null ? null
      : h("p", { class: "dim" }, S.timerDom0)),
    step("scrub", well("scrub"), remedies(of("scrub")), stored && !well("scrub")
      ? h("p", { class: "buttons" }, button(S.doIt.scrub, async () => {
        await post("jobs", { kind: "scrub" });
        say(S.asked);
        goTo("work");
      })) : null),
    step("key", proven, open ? h("p", {}, S.keyOpen) : drawKey(found, word, look)));
}

function drawInit(here, word) {
  const folder = h("input", { size: "40", required: true });
  const label = h("input", { required: true, pattern: "[A-Za-z0-9._\\-]+", oninput: () => write() });
  const standard = check(S.initDefault, true);
  const command = h("code", { "data-part": "dom0" });
  const write = () => put(command, S.initCommand(label.value || "LABEL", here.qube ?? "dom0"));
  write();
  return h("form", { onsubmit: async (event) => {
    event.preventDefault();
    try {
      await post("jobs", { kind: "init", directory: folder.value, label: label.value, default: standard.box.checked });
      say(S.asked);
      goTo("work");
    } catch (error) {
      put(word, trouble(error));
    }
  } }, h("div", { class: "row" }, field(S.initLabel, label), field(S.initDirectory, folder)),
  h("p", {}, here.qube === null ? S.initHelp : S.initHelpQubes), command,
  h("p", {}, standard.row), h("button", { class: "primary" }, S.init));
}

function drawKey(found, word, look) {
  const key = h("input", { type: "password", autocomplete: "off", size: "40" });
  const tell = async (passphrase) => {
    put(word, S.keyTrying);
    try {
      const { opened, recovery } = await post("key", { passphrase });
      put(word, opened ? (recovery ? S.keyGood : S.keyOther) : S.keyForgotten);
      await look();
    } catch (error) {
      put(word, trouble(error));
    }
  };
  return h("form", { onsubmit: (event) => {
    event.preventDefault();
    tell(key.value);
  } }, h("p", {}, S.keyHelp),
  h("div", { class: "row" }, field(S.keyField, key), h("button", { class: "primary", disabled: !found }, S.keyTry),
    found?.keyed ? button(S.keyForget, () => tell("")) : null));
}

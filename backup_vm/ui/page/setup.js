// SPDX-License-Identifier: GPL-2.0-or-later
// From nothing to a backup that runs by itself, with a key that is known to open it.
import { get, post } from "./api.js";
import { onDone } from "./app.js";
import { backUp } from "./overview.js";
import { button, check, field, h, put, say, trouble } from "./dom.js";
import { S } from "./strings.js";

export function draw(main) {
  const body = h("div", {}, h("p", { class: "dim" }, S.loading));
  const word = h("p", { role: "status" });
  main.append(h("p", { class: "dim" }, S.setupHelp), body, word);
  let live = true;

  async function look() {
    const [findings, status] = await Promise.all([
      get("doctor").then((row) => row.findings, () => []),
      get("status").then((row) => row, () => null),
    ]);
    if (live) put(body, drawSteps(findings, status, word, look));
  }
  look();
  const stop = onDone(look);
  return () => {
    live = false;
    stop();
  };
}

function drawSteps(findings, found, word, look) {
  const says = (part) => findings.find((row) => row.what.includes(part));
  const done = (part) => says(part)?.state === "ok";
  const remedy = (part) => {
    const row = says(part);
    return row && row.state !== "ok" ? [h("p", {}, row.what), h("code", {}, row.remedy)] : null;
  };
  const status = found?.status;
  const stored = status?.volumes.some((volume) => volume.sessions > 0) ?? false;
  const agent = done("the agent answers");
  const step = (name, ready, ...parts) => h("li", { class: "card" },
    h("h2", {}, S.steps[name], " ", h("span", { class: ready ? "ok" : "warn" },
      ready ? S.stepState.done : S.stepState.open)), parts);
  return h("ol", {},
    step("archive", status != null, status ? h("p", { class: "name" }, S.archiveLine(status.label, status.path, status.mode))
      : drawInit(word)),
    step("agent", agent, agent ? null : findings.filter((row) => row.state === "bad")
      .map((row) => [h("p", {}, row.what), h("code", {}, row.remedy)])),
    step("first", stored, stored ? null : button(S.backupAll, () => backUp([]), { class: "primary" })),
    step("timer", done("is enabled"), remedy("enabled here"), remedy("no systemd here")),
    step("scrub", done("the last scrub was"), remedy("scrub")),
    step("key", Boolean(found?.keyed), drawKey(status, found?.keyed, word, look)));
}

function drawInit(word) {
  const folder = h("input", { size: "40", required: true });
  const label = h("input", { required: true });
  const standard = check(S.initDefault, true);
  return h("form", { onsubmit: async (event) => {
    event.preventDefault();
    try {
      await post("jobs", { kind: "init", directory: folder.value, label: label.value, default: standard.box.checked });
      say(S.asked);
      location.hash = "#work";
    } catch (error) {
      put(word, trouble(error));
    }
  } }, h("p", {}, S.initHelp), h("code", {}, S.initCommand),
  h("div", { class: "row" }, field(S.initDirectory, folder), field(S.initLabel, label)),
  h("p", {}, standard.row), h("button", { class: "primary" }, S.init));
}

function drawKey(status, keyed, word, look) {
  if (status?.mode === "open") return h("p", {}, S.keyOpen);
  const key = h("input", { type: "password", autocomplete: "off", size: "40" });
  const tell = async (passphrase, good) => {
    try {
      await post("key", { passphrase });
      put(word, good);
      await look();
    } catch (error) {
      put(word, trouble(error));
    }
  };
  return h("form", { onsubmit: (event) => {
    event.preventDefault();
    tell(key.value, S.keyGood);
  } }, h("p", {}, S.keyHelp),
  h("div", { class: "row" }, field(S.keyField, key), h("button", { class: "primary" }, S.keyTry),
    keyed ? button(S.keyForget, () => tell("", S.keyForgotten)) : null));
}

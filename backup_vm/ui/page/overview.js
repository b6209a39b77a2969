// SPDX-License-Identifier: GPL-2.0-or-later
// The archive at a glance.
import { get, post } from "./api.js";
import { goTo, onDone } from "./app.js";
import { ago, button, h, put, say, size, table, trouble, when } from "./dom.js";
import { S } from "./strings.js";

const STALE = 60_000;

export async function backUp(volumes) {
  await post("jobs", { kind: "backup", volumes });
  say(S.asked);
  goTo("work");
}

export function draw(main) {
  const light = h("div", {});
  const body = h("div", {}, h("p", { class: "dim" }, S.loading));
  main.append(light, body);
  let live = true;
  let looked = 0;

  async function look() {
    looked = Date.now();
    drawLight(light, null);
    const health = get("doctor").then((row) => row.findings, (error) =>
      error.errors.map((what) => ({ state: "bad", what, remedy: "" })));
    try {
      const found = await get("status");
      if (live) put(body, drawStatus(found));
    } catch (error) {
      if (live) put(body, trouble(error), h("p", {}, h("a", { href: "#setup" }, S.pages.setup)));
    }
    const findings = await health;
    if (live) drawLight(light, findings);
  }
  look();
  const stop = onDone(look);
  // a disk may have been pulled out while nobody looked at the page
  const seen = () => {
    if (document.visibilityState === "visible" && Date.now() - looked > STALE) post("refresh").then(look, look);
  };
  document.addEventListener("visibilitychange", seen);
  return () => {
    live = false;
    stop();
    document.removeEventListener("visibilitychange", seen);
  };
}

function drawLight(place, findings) {
  if (findings === null) {
    put(place, h("p", { class: "light" }, h("i", {}), S.lightUnknown));
    return;
  }
  const worst = ["bad", "warn"].find((one) => findings.some((row) => row.state === one)) ?? "ok";
  const sound = findings.filter((row) => row.state === "ok");
  put(place,
    h("p", { class: `light ${worst}` }, h("i", {}), S.light[worst]),
    h("ul", { class: "findings", "aria-label": S.findings },
      findings.filter((row) => row.state !== "ok").map((row) =>
        h("li", { class: row.state }, h("strong", { class: row.state }, S.lightWord[row.state]), " ", row.what,
          row.remedy ? h("code", {}, S.remedy, row.remedy) : null, remedyButton(row)))),
    h("details", {}, h("summary", {}, S.soundFindings(sound.length)),
      h("ul", { class: "findings" }, sound.map((row) => h("li", { class: "ok" }, row.what)))));
}

/** What does it, where the page can. */
function remedyButton({ work, what }) {
  if (!S.doIt[work]) return null;
  return h("p", { class: "buttons" }, button(S.doIt[work], async () => {
    if (work === "prune") return goTo("time", { part: "simulator" });
    await post("jobs", { kind: work });
    say(S.asked);
    return goTo("work");
  }, { "aria-label": `${S.doIt[work]}: ${what}` }));
}

function card(figure, text, more = null) {
  return h("div", { class: "card" }, h("b", {}, figure), h("span", {}, text), more);
}

function room({ free, capacity }) {
  if (free === null || !capacity) return null;
  return h("meter", { min: 0, max: capacity, low: capacity * 0.9, high: capacity * 0.95, optimum: 0,
    value: capacity - free, "aria-label": S.roomOf(size(free), size(capacity)) });
}

/** Cards that only some archives have. */
function more({ parity, names, lock }) {
  return [
    names ? card(size(names), S.names) : null,
    parity ? card(size(parity), S.parity) : null,
    lock ? card(lock.until ? when(lock.until) : "?", S.lockedUntil(Math.round(lock.retention / 86400))) : null,
    lock?.waiting ? card(size(lock.waiting), S.waitingUntil(when(lock.waiting_until))) : null,
  ];
}

/** Who else is at work on the archive; what to do about it is among the findings. */
function drawLeases(leases) {
  return leases.map((one) => h("p", { class: "warn" }, S.lease(
    one.process ? S.holder(one.host, one.process, one.command, one.since === null ? "?" : when(one.since)) : S.holderUnknown, ago(one.renewed))));
}

function drawStatus({ status, warnings, systemd }) {
  const times = status.volumes.map((volume) => volume.time).filter((time) => time !== null);
  const newest = times.length ? Math.max(...times) : null;
  const { scrubbed, part_scrubbed: part, drilled } = status;
  const rows = status.volumes.map((volume) => [
    volume.name,
    h("span", { title: when(volume.time) }, ago(volume.time)),
    size(volume.changed),
    volume.spoilt ? [String(volume.sessions), h("span", { class: "bad" }, `, ${S.spoiltOf(volume.spoilt)}`)] : String(volume.sessions),
    size(volume.size),
    volume.verified ? [ago(volume.verified.time), volume.verified.ok ? "" : `, ${S.damageFound}`] : S.never,
    volume.note.includes("gone") || !volume.name.includes("/") ? volume.note
      : button(S.backupShort, () => backUp([volume.name]), { "aria-label": S.backupOne(volume.name) }),
  ]);
  const last = part && (!scrubbed || part.time > scrubbed.time) ? part : scrubbed;
  return [
    h("p", { class: "dim" }, S.archiveLine(status.label, status.path, status.mode)),
    [...new Set([...warnings, ...status.problems])].map((line) => h("p", { class: "warn" }, line)),
    drawLeases(status.leases),
    h("div", { class: "cards" },
      card(ago(newest), S.lastBackup),
      card(status.next_run ?? (systemd ? S.noNextRun : S.noSystemd), S.nextRun),
      card(size(status.free), status.capacity ? S.freeOf(size(status.capacity)) : S.free, room(status)),
      card(size(status.stored), S.stored),
      card(last ? ago(last.time) : S.never, [last === part && part ? S.lastPartScrub : S.lastScrub,
        last && !last.ok ? `: ${S.damageFound}` : ""].join("")),
      card(drilled ? ago(drilled.time) : S.never, drilled
        ? S.lastDrillOf(drilled.name, drilled.ok) : S.lastDrill),
      more(status)),
    h("p", { class: "buttons" }, button(S.backupAll, () => backUp([]), { class: "primary" })),
    h("h2", {}, S.volumes),
    rows.length ? table(S.volumes, S.volumeHeads, rows, [2, 3, 4])
      : h("p", {}, S.noVolumes, " ", h("a", { href: "#setup" }, S.pages.setup)),
  ];
}

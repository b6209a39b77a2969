// SPDX-License-Identifier: GPL-2.0-or-later
// The question before a restore: what is overwritten, and by what.
import { get, post } from "./api.js";
import { goTo } from "./app.js";
import { confirm, h, say, size } from "./dom.js";
import { S } from "./strings.js";

export async function restore(name, session) {
  const { status } = await get("status");
  const now = status.volumes.find((volume) => volume.name === name);
  const there = now && !now.note.includes("gone");
  const picture = h("div", { class: "swap" },
    h("div", { class: "card" }, h("h3", {}, S.restoreNow),
      there
        ? [
          h("p", { class: "name" }, S.restoreNowText(name, size(now.size))),
          now.changed === null ? h("p", {}, S.restoreUnknown)
            : now.changed ? h("p", { class: "warn" }, S.restoreLoses(size(now.changed), now.latest))
              : h("p", {}, S.restoreSame(now.latest)),
        ]
        : h("p", { class: "name" }, S.restoreGone(name))),
    h("div", { class: "card" }, h("h3", {}, S.restoreBy),
      h("p", { class: "name" }, S.restoreByText(name, session.session, size(session.size)))),
    h("p", { class: "dim" }, S.restoreDom0));
  if (!(await confirm(S.restoreTitle, picture, S.restoreYes, S.restoreUnderstood))) return;
  // dom0 is told that an older one is meant only where that was named
  const newest = now && now.latest === session.session;
  await post("jobs", {
    kind: "restore", volume: name, session: newest ? "latest" : session.session, confirmed: true,
  });
  say(S.asked);
  goTo("work");
}

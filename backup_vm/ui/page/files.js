// SPDX-License-Identifier: GPL-2.0-or-later
// Files of a session: folders, search, versions of a file, download.
import { get, post } from "./api.js";
import { goTo } from "./app.js";
import { button, field, h, put, size, table, trouble, when } from "./dom.js";
import { S } from "./strings.js";

const MOST = 500;

export function draw(main, query) {
  const at = { volume: query.get("volume") ?? "", session: query.get("session") ?? "latest",
    path: query.get("path") ?? "/" };
  const name = query.get("name") ?? "";
  const volume = h("select", {});
  const session = h("input", { value: at.session });
  const path = h("input", { value: at.path, size: "40" });
  const search = h("input", { value: name });
  const list = h("div", {});
  const versions = h("div", { "aria-live": "polite" });
  const move = (event) => {
    event.preventDefault();
    goTo("files", { volume: volume.value, session: session.value || "latest",
      path: path.value || "/", name: search.value });
  };
  main.append(h("p", { class: "dim" }, S.hostile),
    h("form", { class: "row", onsubmit: move }, field(S.volume, volume), field(S.session, session),
      field(S.path, path), field(S.search, search), h("button", { class: "primary" }, S.go)),
    versions, list);
  let live = true;

  async function look() {
    const { volumes } = await get("days");
    put(volume, volumes.map((one) => h("option", { value: one }, one)));
    if (!at.volume) {
      if (volumes.length) at.volume = volumes[0];
      else return put(list, h("p", {}, S.noVolumes));
    }
    volume.value = at.volume;
    put(list, h("p", { class: "dim" }, S.loading));
    const found = await get("files", { ...at, name });
    if (live) put(list, found.warnings.map((line) => h("p", { class: "warn" }, line)), drawFolder(found.files));
    return null;
  }

  function drawFolder(files) {
    const up = at.path.replace(/\/+$/, "").replace(/\/[^/]*$/, "") || "/";
    const shown = files.slice(0, MOST);
    return [
      at.path === "/" ? null : h("p", {}, button(S.up, () => goTo("files", { ...at, path: up }))),
      shown.length ? table(at.path, S.filesHeads, shown.map(row), [1]) : h("p", {}, S.emptyFolder),
      files.length > MOST ? h("p", { class: "dim" }, S.planMore(files.length - MOST)) : null,
    ];
  }

  function row(file) {
    const short = name ? file.path : file.path.slice(file.path.lastIndexOf("/") + 1);
    const folder = file.type === "folder";
    return [
      folder ? h("a", { href: `#files?${new URLSearchParams({ ...at, path: file.path })}` }, `${short}/`) : short,
      folder ? "" : size(file.size),
      when(Math.floor(file.mtime / 1e9)),
      file.type !== "file" ? "" : h("span", { class: "row" },
        button(S.download, () => download(file.path), { "aria-label": S.downloadOf(short) }),
        button(S.history, () => history(file.path), { "aria-label": S.historyOf(short) })),
    ];
  }

  async function download(file) {
    try {
      const { link } = await post("ticket", { ...at, path: file });
      const anchor = h("a", { href: link, download: "" });
      document.body.append(anchor);
      anchor.click();
      anchor.remove();
    } catch (error) {
      put(versions, trouble(error));
    }
  }

  async function history(file) {
    put(versions, h("p", { class: "dim" }, S.loading));
    try {
      const { sessions } = await get("history", { volume: at.volume, path: file });
      put(versions, h("h2", { class: "name" }, S.versions(file)),
        h("p", { class: "row" }, sessions.map((one) =>
          button(`${one.session}: ${S.versionWords[one.change] ?? one.change}${"size" in one ? `, ${size(one.size)}` : ""}`,
            () => goTo("files", { ...at, session: one.session, path: file.slice(0, file.lastIndexOf("/")) || "/" })))));
    } catch (error) {
      put(versions, trouble(error));
    }
  }

  look().catch((error) => {
    if (live) put(list, trouble(error), error.code === 12 ? h("p", {}, S.filesNeedKey) : null);
  });
  return () => (live = false);
}

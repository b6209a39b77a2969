// SPDX-License-Identifier: GPL-2.0-or-later
// Files of a session: folders, search, versions of a file, download.
import { post, get } from "./api.js";
import { address, goTo, onDone } from "./app.js";
import { button, check, field, h, put, say, size, table, trouble, when } from "./dom.js";
import { S } from "./strings.js";

const MOST = 500;

export function draw(main, query) {
  const at = { volume: query.volume ?? "", session: query.session ?? "latest", path: query.path ?? "/" };
  const name = query.name ?? "";
  let most = MOST;
  const volume = h("select", {});
  const session = h("input", { value: at.session });
  const path = h("input", { value: at.path, size: "30" });
  const search = h("input", { value: name });
  const every = check(S.searchAll, query.all === "1");
  const all = Boolean(name) && every.box.checked;
  const list = h("div", {});
  const versions = h("section", { "aria-live": "polite" });
  const troubles = h("div", {});
  const move = (event) => {
    event.preventDefault();
    // a field shows a name that is no UTF-8 as well as it can: only what was typed is taken from it
    const typed = path.value === path.defaultValue ? at.path : path.value;
    goTo("files", { volume: volume.value, session: session.value || "latest", path: typed || "/", name: search.value,
      all: every.box.checked ? "1" : "" });
  };
  path.defaultValue = path.value;
  volume.addEventListener("change", () => goTo("files", { volume: volume.value }));
  main.append(h("p", { class: "dim" }, S.hostile),
    h("form", { class: "row", onsubmit: move }, field(S.volume, volume), field(S.session, session),
      field(S.path, path), field(S.search, search), every.row, h("button", { class: "primary" }, S.go)),
    troubles, versions, list);
  let live = true;

  async function look() {
    const { volumes } = await get("names");
    put(volume, volumes.map((one) => h("option", { value: one }, one)));
    if (!at.volume) {
      if (volumes.length) [at.volume] = volumes;
      else return put(list, h("p", {}, S.noVolumes, " ", h("a", { href: "#setup" }, S.pages.setup)));
    }
    volume.value = at.volume;
    if (!list.firstChild) put(list, h("p", { class: "dim" }, S.loading));
    const found = await post("files", { ...at, name, all });
    if (live) drawList(found);
    return null;
  }

  function drawList({ files, warnings }) {
    put(list, warnings.map((line) => h("p", { class: "warn" }, line)), crumbs(),
      name ? null : h("p", { class: "buttons" }, button(S.downloadAll, () => download(at.session, at.path, true))),
      all ? h("p", { class: "row" }, h("span", { class: "dim" }, S.searchedAll), button(S.index, index)) : null,
      files.length ? table(at.path, all ? S.foundHeads : S.filesHeads, files.slice(0, most).map(row), [1])
        : h("p", {}, name ? S.nothingFound : S.emptyFolder),
      files.length > most ? h("p", { class: "row" }, h("span", { class: "dim" }, S.moreFiles(files.length - most)),
        button(S.showMore, () => {
          most += MOST;
          drawList({ files, warnings });
        })) : null);
  }

  /** The folders above, each to go to. */
  function crumbs() {
    const names = at.path.split("/").filter(Boolean);
    const links = names.map((one, index) => [" / ", index === names.length - 1 && !name
      ? h("strong", {}, one)
      : h("a", { href: address("files", { ...at, path: `/${names.slice(0, index + 1).join("/")}` }) }, one)]);
    return h("nav", { class: "crumbs", "aria-label": S.folders },
      h("a", { href: address("files", { ...at, path: "/" }) }, at.volume), links);
  }

  function row(file) {
    const short = name ? file.path : file.path.slice(file.path.lastIndexOf("/") + 1);
    const folder = file.type === "folder";
    const session = file.last ?? at.session;
    return [
      folder ? h("a", { href: address("files", { ...at, session, path: file.path }) }, `${short}/`) : short,
      folder ? "" : size(file.size),
      when(Math.floor(file.mtime / 1e9)),
      all ? [S.fromTo(file.first, file.last, file.sessions)] : null,
      folder ? button(S.downloadFolder, () => download(session, file.path, true), { "aria-label": S.downloadFolderOf(short) })
        : file.type !== "file" ? "" : h("span", { class: "row" },
          button(S.download, () => download(session, file.path), { "aria-label": S.downloadOf(short) }),
          button(S.history, () => history(file.path), { "aria-label": S.historyOf(short) })),
    ].filter((cell) => cell !== null);
  }

  async function index() {
    try {
      await post("jobs", { kind: "index", volume: at.volume });
      say(S.asked);
      goTo("work");
    } catch (error) {
      put(troubles, trouble(error));
    }
  }

  /** A browser says that a download failed, and not why: that is asked for. */
  async function download(of, file, folder = false) {
    try {
      const { link } = await post("ticket", { volume: at.volume, session: of, path: file, folder });
      const anchor = h("a", { href: link, download: "" });
      document.body.append(anchor);
      anchor.click();
      anchor.remove();
      put(troubles);
      say(S.downloadBegun(file));
      let outcome = { ended: false };
      while (live && !outcome.ended) {
        await new Promise((resolve) => setTimeout(resolve, 1000));
        outcome = await post("outcome", { link });
      }
      if (live && outcome.errors.length) put(troubles, trouble(outcome));
    } catch (error) {
      if (live) put(troubles, trouble(error));
    }
  }

  async function history(file) {
    put(versions, h("p", { class: "dim" }, S.loading));
    versions.scrollIntoView({ block: "nearest" });
    try {
      const { sessions } = await post("history", { volume: at.volume, path: file });
      const folder = file.slice(0, file.lastIndexOf("/")) || "/";
      put(versions, h("h2", { class: "name" }, S.versions(file)),
        h("ol", { class: "versions", "aria-label": S.versions(file) }, sessions.map((one) => {
          const word = S.versionWords[one.change] ?? one.change;
          return h("li", { class: "card" }, h("b", {}, one.session),
            h("span", {}, "size" in one ? `${word}, ${size(one.size)}` : word),
            one.change === "-" ? null : h("p", { class: "row" },
              button(S.download, () => download(one.session, file), { "aria-label": S.downloadVersion(one.session) }),
              button(S.openFolder, () => goTo("files", { ...at, session: one.session, path: folder }),
                { "aria-label": S.openVersion(one.session) })));
        })));
    } catch (error) {
      put(versions, trouble(error));
    }
  }

  const again = () => look().catch((error) => {
    if (live) put(list, trouble(error), error.code === 12 ? h("p", {}, S.filesNeedKey) : null);
  });
  again();
  const stop = onDone(again);
  return () => {
    live = false;
    stop();
  };
}

// SPDX-License-Identifier: GPL-2.0-or-later
// What is asked for and at work: forms, and the queue with progress, log and cancel.
import { get, post } from "./api.js";
import { onDone, watch } from "./app.js";
import { button, check, field, h, put, say, size, trouble, when } from "./dom.js";
import { S } from "./strings.js";

export function draw(main) {
  const errors = h("div", {});
  const queue = h("div", {});
  const forms = h("div", {});
  const folded = new Map();
  main.append(h("h2", {}, S.queue), queue, h("h2", {}, S.newWork), errors, forms);

  async function ask(kind, body) {
    try {
      put(errors);
      await post("jobs", { kind, ...body });
      say(S.asked);
      window.scrollTo(0, 0);
    } catch (error) {
      put(errors, trouble(error));
    }
  }

  drawForms(forms, ask);
  const stopForms = onDone(() => forms.querySelector(".bad") && drawForms(forms, ask));
  const stop = watch((jobs) => {
    const focused = queue.contains(document.activeElement) ? document.activeElement.dataset.key : "";
    for (const one of queue.querySelectorAll("details")) folded.set(one.dataset.job, one.open);
    put(queue, jobs.length ? jobs.map((job) => drawJob(job, folded.get(`${job.id} ${job.state}`)))
      : h("p", { class: "dim" }, S.nothingQueued));
    if (focused) queue.querySelector(`[data-key="${focused}"]`)?.focus();
  });
  return () => {
    stop();
    stopForms();
  };
}

function drawForms(place, ask) {
  const chosen = h("div", {}, h("p", { class: "dim" }, S.loading));
  const note = h("input", {});
  const target = h("input", { size: "40", required: true });
  const rate = h("input", { size: "8" });
  const boxes = [];
  const form = (title, submit, ...parts) => h("form", { onsubmit: (event) => {
    event.preventDefault();
    submit();
  } }, h("fieldset", {}, h("legend", {}, title), parts));
  const go = (text) => h("p", { class: "buttons" }, h("button", { class: "primary" }, text));
  put(place,
    form(S.backup, () => {
      const wanted = boxes.filter((box) => box.checked).map((box) => box.value);
      const every = wanted.length === boxes.length;
      if (!wanted.length && boxes.length) {
        put(chosen.querySelector(".bad") ?? chosen.appendChild(h("p", { class: "bad", role: "alert" })), S.backupNothing);
        return;
      }
      ask("backup", { volumes: every ? [] : wanted, note: note.value });
    }, chosen, field(S.backupNote, note), go(S.backup)),
    form(S.verify, () => ask("verify", {}), h("p", {}, S.verifyHelp), go(S.verify)),
    form(S.scrub, () => ask("scrub", {}), h("p", {}, S.scrubHelp), go(S.scrub)),
    form(S.copy, () => ask("copy", { target: target.value, limit_rate: rate.value.trim() }),
      h("p", {}, S.copyHelp), h("div", { class: "row" }, field(S.copyTo, target), field(S.limitRate, rate, S.limitHint)),
      go(S.copy)));
  get("status").then(({ status }) => {
    const there = status.volumes.filter((volume) => volume.name.includes("/") && !volume.note.includes("gone"));
    const every = (on) => () => {
      for (const box of boxes) box.checked = on;
    };
    put(chosen, h("p", { class: "dim" }, S.backupWhat),
      there.length > 3 ? h("p", { class: "row" }, button(S.chooseAll, every(true)), button(S.chooseNone, every(false))) : null,
      there.map((volume) => {
        const one = check(volume.name, true, { value: volume.name });
        boxes.push(one.box);
        return one.row;
      }));
  }, (error) => put(chosen, trouble(error)));
}

function title(job) {
  const { asked } = job;
  const about = asked.volumes?.length ? S.ofVolumes(asked.volumes)
    : asked.volume ? `${asked.volume} ${asked.session ?? ""}`
      : asked.target ?? asked.directory ?? (job.kind === "backup" ? S.all : "");
  return `${S.kinds[job.kind]} ${about}`.trim();
}

function drawJob(job, unfolded) {
  const over = job.ended !== null;
  const state = { done: "ok", failed: "bad" }[job.state] ?? "dim";
  const { progress } = job;
  const result = job.state === "done" && job.result ? S.results[job.kind]?.(job.result) : "";
  const named = title(job);
  return h("section", { class: "job", "aria-label": named, "data-state": job.state },
    h("header", {}, h("h3", { class: "name" }, named), h("span", { class: state }, S.states[job.state]),
      h("span", {}, result || null),
      h("span", { class: "dim" }, over && job.started
        ? `${when(job.started)}, ${S.took(job.took)}` : null)),
    job.state === "running"
      ? h("div", {}, progress && progress.total
        ? [h("progress", { max: progress.total, value: progress.done, "aria-label": named }),
          h("p", { class: "dim" }, `${progress.name} ${S.progressOf(size(Math.min(progress.done, progress.total)), size(progress.total))}`)]
        : h("progress", { "aria-label": named }))
      : null,
    over ? null : h("p", { class: "buttons" },
      button(S.cancel, () => post("cancel", { id: job.id }).catch(() => {}),
        { "aria-label": S.cancelOf(named), "data-key": `cancel-${job.id}` })),
    h("details", { "data-job": `${job.id} ${job.state}`, open: unfolded ?? job.state === "failed" },
      h("summary", { "data-key": `log-${job.id}` }, S.log),
      h("code", {}, job.command),
      h("pre", {}, job.log.join("\n") || S.emptyLog)));
}

// SPDX-License-Identifier: GPL-2.0-or-later
// Questions to the server. Every one carries the key that the page got when it was opened.
import { S } from "./strings.js";

const NAME = "sparsebak-key";
const PATIENCE = 500;

export function keep(key) {
  sessionStorage.setItem(NAME, key);
}

// Tabs of this page tell each other the key: a channel is of one origin, port and all.
const tabs = new BroadcastChannel("sparsebak");
const asking = new Set();
tabs.addEventListener("message", ({ data }) => {
  const key = sessionStorage.getItem(NAME);
  if (data.asks && key) tabs.postMessage({ key });
  if (!data.key || key) return;
  keep(data.key);
  for (const told of asking) told();
});

/** The key; a tab that was not opened by the program asks the one that was. */
async function known() {
  if (!sessionStorage.getItem(NAME)) {
    await new Promise((resolve) => {
      asking.add(resolve);
      setTimeout(resolve, PATIENCE);
      tabs.postMessage({ asks: true });
    }).finally(() => asking.clear());
  }
  return sessionStorage.getItem(NAME) ?? "";
}

/** What a command said that failed; `errors` are its own lines. */
export class Failure extends Error {
  constructor(errors, code) {
    super(errors.join("\n"));
    this.errors = errors;
    this.code = code;
  }
}

async function ask(path, options, signal) {
  const key = await known();
  const headers = { "X-Sparsebak-Key": key, ...options.headers };
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure([S.serverGone], 0);
  }
  if (response.status === 403) throw new Failure([key ? S.notAllowed : S.noKey], 403);
  let found;
  try {
    found = await response.json();
  } catch {
    throw new Failure([S.serverGone], response.status);
  }
  if (!response.ok) throw new Failure(found.errors, found.code);
  return found;
}

export function get(name, query = {}, signal = undefined) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value != null);
  return ask(`/api/${name}?${new URLSearchParams(given)}`, {}, signal);
}

export function post(name, body = {}, signal = undefined) {
  const headers = { "Content-Type": "application/json" };
  return ask(`/api/${name}`, { method: "POST", headers, body: JSON.stringify(body) }, signal);
}

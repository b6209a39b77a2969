// SPDX-License-Identifier: GPL-2.0-or-later
// Keeps the key where pages of other ports cannot read it, and leads to the app.
import { keep } from "./api.js";

keep(document.querySelector("meta[name=key]").content);
location.replace("/");

#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Tells dom0 that qubes of this template know the service "sparsebak", so that their settings offer it: it lets
# sparsebak-backup.timer make backups. Run by qubes.PostInstall, whose last script sends what all of them asked for.
command -v qvm-features-request >/dev/null 2>&1 || exit 0
qvm-features-request supported-service.sparsebak=1

# SPDX-License-Identifier: GPL-2.0-or-later
"""The archives of a place on one page of HTML that needs nothing else. Names are those that their
owners chose.
"""

import datetime

from backup_vm.reporting.kept_rows import KeptRow, State, UpkeepRow
from backup_vm.reporting.page import document
from backup_vm.reporting.tree import Tree, cards, findings, node, table
from backup_vm.terminal.text import size_text
from common.text import printable, session_name

_KIND = {State.WELL: "ok", State.IN_USE: "warn", State.LEFT: "warn", State.WARNED: "warn"}
_HEADS = ("Archive", "Label", "State", "Newest session", "Sessions", "Stored", "Packs scrubbed")


def page(run: UpkeepRow) -> str:
    """The page of a run."""
    now = datetime.datetime.fromtimestamp(run["ended"], datetime.UTC)
    rows = run["archives"]
    well = sum(row["state"] == State.WELL for row in rows)
    waits = (State.IN_USE, State.LEFT)
    later = sum(row["state"] in waits and not row["problems"] for row in rows)
    stored = sum(row["status"]["stored"] for row in rows if row["status"])
    figures = [
        (str(len(rows)), "archives"),
        (str(well), "kept, and well"),
        *([(str(later), "in use or left: kept by a later run")] if later else []),
        (str(len(rows) - well - later), "to be looked at"),
        (size_text(stored), "stored"),
        (size_text(sum(row["freed"] for row in rows)), "freed"),
    ]
    title = f"Archives at {printable(run['place'])}"
    body = [
        node("h1", {}, title),
        node("p", {"class": "dim"}, f"as of {now:%d %b %Y, %H:%M} UTC"),
        cards(figures),
        node("h2", {}, "Health"),
        _health(run),
        node("h2", {}, "Archives"),
        table("Archives", _HEADS, map(_row, rows), frozenset({4, 5})),
        node("footer", {"class": "dim"}, "Made by sparsebak upkeep. Days and times are UTC."),
    ]
    return document(title, body)


def _health(run: UpkeepRow) -> Tree:
    items = [("bad", problem) for problem in run["problems"]]
    for row in run["archives"]:
        kind = _KIND.get(State(row["state"]), "bad")
        items += [(kind, f"{row['name']}: {text}") for text in (*row["problems"], *row["notes"])]
        if row["state"] == State.LEFT:
            kept = session_name(row["kept"]) if row["kept"] else "never"
            items.append((kind, f"{row['name']}: left by this run; kept last: {kept}"))
    return findings("Health", items or [("ok", "All archives are well.")])


def _row(row: KeptRow) -> tuple[str, ...]:
    newest = "" if row["newest"] is None else session_name(row["newest"])
    stored = size_text(row["status"]["stored"]) if row["status"] else ""
    scrubbed = f"{row['scrubbed']} of {row['of']}" if row["of"] else ""
    return (
        row["name"],
        row["label"],
        row["state"],
        newest,
        str(row["sessions"]),
        stored,
        scrubbed,
    )

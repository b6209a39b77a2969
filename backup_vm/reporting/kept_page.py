# SPDX-License-Identifier: GPL-2.0-or-later
"""The archives of a place on one page of HTML that needs nothing else. Names are those that their
owners chose.
"""

import datetime
from html import escape

from backup_vm.reporting.kept_rows import KeptRow, State, UpkeepRow
from backup_vm.reporting.page import document
from backup_vm.terminal.text import size_text
from common.text import printable, session_name

_KIND = {State.WELL: "good", State.IN_USE: "warn", State.LEFT: "warn", State.WARNED: "warn"}
_HEADS = ("Archive", "Label", "State", "Newest session", "Sessions", "Stored", "Packs scrubbed")


def page(run: UpkeepRow) -> str:
    """The page of a run."""
    now = datetime.datetime.fromtimestamp(run["ended"], datetime.UTC)
    rows = run["archives"]
    well = sum(row["state"] == State.WELL for row in rows)
    stored = sum(row["status"]["stored"] for row in rows if row["status"])
    figures = [
        (str(len(rows)), "archives"),
        (str(well), "kept, and well"),
        (str(len(rows) - well), "to be looked at"),
        (size_text(stored), "stored"),
        (size_text(sum(row["freed"] for row in rows)), "freed"),
    ]
    boxes = "".join(f"<div><b>{_safe(a)}</b><span>{_safe(b)}</span></div>" for a, b in figures)
    body = [
        f"<h1>Archives at {_safe(run['place'])}</h1>",
        f'<p class="dim">as of {now:%d %b %Y, %H:%M} UTC</p><div class="figures">{boxes}</div>',
        f'<h2>Health</h2><ul class="health">{_health(run)}</ul>',
        f'<h2>Archives</h2><div class="scroll"><table><thead><tr>{_heads()}</tr></thead>',
        f"<tbody>{''.join(map(_row, rows))}</tbody></table></div>",
        '<footer class="dim">Made by sparsebak upkeep. Days and times are UTC.</footer>',
    ]
    return document(f"Archives at {printable(run['place'])}", body)


def _safe(text: str) -> str:
    return escape(printable(text))


def _heads() -> str:
    return "".join(f"<th>{head}</th>" for head in _HEADS)


def _health(run: UpkeepRow) -> str:
    items = [("bad", problem) for problem in run["problems"]]
    for row in run["archives"]:
        kind = _KIND.get(State(row["state"]), "bad")
        items += [(kind, f"{row['name']}: {text}") for text in (*row["problems"], *row["notes"])]
        if row["state"] == State.LEFT:
            kept = session_name(row["kept"]) if row["kept"] else "never"
            items.append((kind, f"{row['name']}: left by this run; kept last: {kept}"))
    order = ("bad", "warn", "good")
    items.sort(key=lambda item: order.index(item[0]))
    items = items or [("good", "All archives are well.")]
    return "".join(f'<li class="{kind}">{_safe(text)}</li>' for kind, text in items)


def _row(row: KeptRow) -> str:
    newest = "" if row["newest"] is None else session_name(row["newest"])
    stored = size_text(row["status"]["stored"]) if row["status"] else ""
    scrubbed = f"{row['scrubbed']} of {row['of']}" if row["of"] else ""
    cells = (
        row["name"],
        row["label"],
        row["state"],
        newest,
        str(row["sessions"]),
        stored,
        scrubbed,
    )
    return "<tr>" + "".join(f"<td>{_safe(text)}</td>" for text in cells) + "</tr>"

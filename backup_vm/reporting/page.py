# SPDX-License-Identifier: GPL-2.0-or-later
"""The report itself: head, figures, health, growth, and for each qube its volumes and its calendar.

``sparsebak ui`` shows the same pieces, in the same style, which is a file of its page.
"""

import datetime
from collections.abc import Callable
from html import escape
from itertools import groupby
from pathlib import Path

from backup_vm.reporting.calendar import calendar, days_of, legend
from backup_vm.reporting.chart import growth
from backup_vm.reporting.locks import lease_line, lock_text
from backup_vm.reporting.rows import CheckRow, StatusRow, UnprovenRow, VolumeRow, row_name
from backup_vm.reporting.tree import Tree, cards, findings, html, node, scrolling, table
from backup_vm.terminal.text import ratio_text, size_text
from common.text import printable

STYLE = Path(__file__).parents[1] / "ui" / "page" / "look.css"
OLD = 31
"""Days after which the last scrub, or a volume's last verification, is called old."""


def page(
    status: StatusRow, volumes: list[VolumeRow], points: list[tuple[int, int]], now: int
) -> str:
    """The page, from what ``status --json`` and ``list --json`` tell, and the space over time."""
    today = datetime.datetime.fromtimestamp(now, datetime.UTC)
    qubes = [
        (qube, list(group))
        for qube, group in groupby(volumes, key=lambda volume: volume["qube"] or volume["volume"])
    ]
    about = f"{status['path']} · {status['mode']} · as of {today:%d %b %Y, %H:%M} UTC"
    body = [
        node("h1", {}, f"Archive {status['label']}"),
        node("p", {"class": "dim"}, about),
        figures(status, volumes),
        node("h2", {}, "Health"),
        _health(status, volumes, now),
        *([node("h2", {}, "Growth"), grown] if (grown := grown_since(points)) else []),
        node("h2", {}, "Qubes") if qubes else node("p", {}, "There are no sessions yet."),
        *(_qube(qube, group, now // 86400) for qube, group in qubes),
        node("footer", {"class": "dim"}, "Made by sparsebak report. Days and times are UTC."),
    ]
    return document(f"Archive {status['label']}", body)


def document(title: str, body: list[Tree]) -> str:
    """A whole page of HTML with our style. No script runs on it and nothing is fetched, whatever is
    in it.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(printable(title))}</title><style>{STYLE.read_text()}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n'
        f"<body>{html(node('main', {}, *body))}</body></html>\n"
    )


def figures(status: StatusRow, volumes: list[VolumeRow]) -> Tree:
    """The archive in figures."""
    sessions = sum(len(volume["sessions"]) for volume in volumes)
    live = sum(volume["sessions"][-1]["size"] for volume in volumes if volume["sessions"])
    spaces = [((v["own"] or 0) + (v["shared"] or 0), v["compression"] or 0) for v in volumes]
    stored = sum(size for size, _ in spaces)
    plain = sum(size * compression for size, compression in spaces)
    return cards(
        [
            (size_text(status["stored"]), "stored"),
            ("?" if status["free"] is None else size_text(status["free"]), "free on the disk"),
            (f"{sessions:,}", f"sessions of {len(volumes)} volumes"),
            (size_text(live), "size of the volumes"),
            *([(ratio_text(plain / stored), "compression")] if stored else []),
            *([(size_text(status["names"]), "indexes of names")] if status["names"] else []),
        ]
    )


def _health(status: StatusRow, volumes: list[VolumeRow], now: int) -> Tree:
    items = [("bad", problem) for problem in status["problems"]]
    items.append(_check("Scrub", status["scrubbed"], now))
    if status["part_scrubbed"]:
        items.append(_check("Scrub of a part", status["part_scrubbed"], now))
    if status["unproven"]:
        items.append(_longest(status["unproven"], now))
    items.append(_check("Drill", status["drilled"], now))
    for volume in status["volumes"]:
        if volume["drilled"] and not volume["drilled"]["ok"]:
            items.append(_check(f"Drill of {volume['name']}", volume["drilled"], now))
    items += [_check(f"Verify {row_name(volume)}", volume["verified"], now) for volume in volumes]
    for volume in status["volumes"]:
        if volume["latest"] is None:
            items.append(("warn", f"{volume['name']} was never backed up"))
    items += [("warn", lease_line(row)) for row in status["leases"]]
    if (lock := status["lock"]) is not None:
        kind = "warn" if lock["late"] else "ok"
        items += [(kind, line) for line in lock_text(lock)]
    if status["next_run"]:
        items.append(("ok", f"The next backup is due {status['next_run']}"))
    return findings("Health", items)


def _longest(row: UnprovenRow, now: int) -> tuple[str, str]:
    days = max(0, now - row["since"]) // 86400
    what = "verified" if row["verified"] else "stored, and never verified,"
    text = f"Longest unproven: {row['name']} {row['session']}, {what} {_ago(days)}"
    return ("ok" if days <= OLD else "warn"), text


def _ago(days: int) -> str:
    return "today" if days == 0 else "yesterday" if days == 1 else f"{days} days ago"


def _check(what: str, check: CheckRow | None, now: int) -> tuple[str, str]:
    if check is None:
        return "warn", f"{what}: never done"
    days = max(0, now - check["time"]) // 86400
    when = _ago(days)
    if not check["ok"]:
        return "bad", f"{what}: damage found, {when}"
    return ("ok" if days <= OLD else "warn"), f"{what}: sound, {when}"


def _qube(qube: str, volumes: list[VolumeRow], today: int) -> Tree:
    times = [session["time"] for volume in volumes for session in volume["sessions"]]
    label = f"Sessions of {qube} in the last year"
    return node(
        "section",
        {},
        node("h3", {"class": "name"}, qube),
        volume_table(f"Volumes of {qube}", volumes),
        scrolling(calendar(days_of(times), today, label), label),
        legend(),
    )


def grown_since(points: list[tuple[int, int]]) -> Tree | None:
    """The chart of growth; None where nothing is known of it."""
    chart = growth(points)
    return None if chart is None else scrolling(chart, "Growth")


_HEADS = (
    "Volume",
    "Sessions",
    "Newest",
    "Size",
    "Only its own",
    "Shared",
    "Share",
    "Compressed",
    "Deduplicated",
)


def volume_table(caption: str, volumes: list[VolumeRow], whole_name: bool = False) -> Tree:
    """Volumes with what each takes up, and a bar of that; ``whole_name``: with the qube's."""
    most = max([1, *((v["own"] or 0) + (v["shared"] or 0) for v in volumes)])
    rows = [
        (
            row_name(volume) if whole_name else volume["volume"] if volume["qube"] else "",
            f"{len(volume['sessions']):,}",
            volume["sessions"][-1]["session"] if volume["sessions"] else "",
            size_text(volume["sessions"][-1]["size"]) if volume["sessions"] else "",
            _or_nothing(size_text, volume["own"]),
            _or_nothing(size_text, volume["shared"]),
            _bar(volume, most),
            _or_nothing(ratio_text, volume["compression"]),
            _or_nothing(ratio_text, volume["deduplication"]),
        )
        for volume in volumes
    ]
    return table(caption, _HEADS, rows, frozenset({1, 3, 4, 5, 7, 8}))


def _bar(volume: VolumeRow, most: int) -> Tree:
    """What a volume takes up beside the one that takes most."""
    own, shared = (100 * (volume[key] or 0) / most for key in ("own", "shared"))
    about = {"viewBox": "0 0 100 10", "class": "bar", "preserveAspectRatio": "none"}
    return node(
        "svg",
        {**about, "aria-hidden": "true"},  # the figures stand beside it
        node("rect", {"class": "own", "width": f"{own:.1f}", "height": 10}),
        node(
            "rect", {"class": "shared", "x": f"{own:.1f}", "width": f"{shared:.1f}", "height": 10}
        ),
    )


def _or_nothing(text: Callable[[float], str], value: float | None) -> str:
    return "" if value is None else text(value)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The page itself: head, figures, health, growth, and for each qube its volumes and its calendar."""

import datetime
from collections.abc import Callable
from html import escape
from itertools import groupby

from backup_vm.reporting.calendar import calendar
from backup_vm.reporting.chart import growth
from backup_vm.reporting.rows import CheckRow, StatusRow, UnprovenRow, VolumeRow, row_name
from backup_vm.terminal.text import ratio_text, size_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --dim: #5b6675; --line: #d9dee6; --paper: #fff; --card: #f6f7f9;
  --accent: #2563a8; --area: #2563a826; --none: #e6e9ee; --one: #a9c8ea; --some: #5b95d1; --many: #1f5fa6;
  --good: #1a7f45; --bad: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --dim: #9aa6b5; --line: #303948; --paper: #12161d;
  --card: #1a202a; --accent: #6fb1f5; --area: #6fb1f526; --none: #232b37; --one: #24476b; --some: #3a78b8; --many: #86c0fa;
  --good: #5fce8b; --bad: #ff8a80; --warn: #f0c060; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem }
p { margin: .25rem 0 } .dim { color: var(--dim) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin-top: 1.25rem }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem }
.figures b { display: block; font-size: 1.35rem; font-weight: 600 } .figures span { color: var(--dim); font-size: .85rem }
ul.health { list-style: none; padding: 0; margin: 0 } .health li { padding: .2rem 0 .2rem 1.6rem; position: relative }
.health li::before { position: absolute; left: 0; font-weight: 700 }
.good::before { content: "\\2713"; color: var(--good) } .bad::before { content: "\\2717"; color: var(--bad) }
.warn::before { content: "!"; color: var(--warn); padding-left: .3rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .92rem }
th, td { padding: .35rem 1.25rem .35rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--dim); font-weight: 500 } .number { text-align: right }
svg { display: block; width: 100%; height: auto } svg text { fill: var(--dim); font-size: 11px }
.calendar { min-width: 44rem; margin-top: .9rem } .calendar text { font-size: 9px }
.level0 { fill: var(--none) } .level1 { fill: var(--one) } .level2 { fill: var(--some) } .level3 { fill: var(--many) }
.grid { stroke: var(--line) } .line { fill: none; stroke: var(--accent); stroke-width: 2 } .area { fill: var(--area) }
.point { fill: var(--accent) }
.key { display: flex; gap: .4rem; align-items: center; color: var(--dim); font-size: .8rem; margin-top: .35rem }
.key i { width: .7rem; height: .7rem; border-radius: 2px; display: inline-block } footer { margin-top: 3rem }
.key .level0 { background: var(--none) } .key .level1 { background: var(--one) } .key .level2 { background: var(--some) }
.key .level3 { background: var(--many) }
"""
_KEY = (
    '<p class="key">sessions a day: <i class="level0"></i> none <i class="level1"></i> one <i class="level2"></i> 2 to 4 '
    '<i class="level3"></i> more</p>'
)
OLD = 31
"""Days after which the last scrub, or a volume's last verification, is called old."""


def page(
    status: StatusRow, volumes: list[VolumeRow], points: list[tuple[int, int]], now: int
) -> str:
    """The page, from what ``status --json`` and ``list --json`` tell, and the space used over time."""
    today = datetime.datetime.fromtimestamp(now, datetime.UTC)
    qubes = [
        (qube, list(group))
        for qube, group in groupby(volumes, key=lambda volume: volume["qube"] or volume["volume"])
    ]
    body = [
        f"<h1>Archive {escape(status['label'])}</h1>",
        f'<p class="dim">{escape(status["path"])} · {escape(status["mode"])} · as of {today:%d %b %Y, %H:%M} UTC</p>',
        _figures(status, volumes),
        f"<h2>Health</h2>{_health(status, volumes, now)}",
        f'<h2>Space</h2><div class="scroll">{growth(points)}</div>' if points else "",
        "<h2>Qubes</h2>" if qubes else "<p>There are no sessions yet.</p>",
        *(_qube(qube, group, today.date()) for qube, group in qubes),
        '<footer class="dim">Made by sparsebak report. Days and times are UTC.</footer>',
    ]
    return document(f"Archive {status['label']}", body)


def document(title: str, body: list[str]) -> str:
    """A whole page with our style: ``title`` as it is, ``body`` as HTML. No script runs on it and
    nothing is fetched, whatever is in it.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)}</title>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>{"".join(body)}</body></html>\n'


def _figures(status: StatusRow, volumes: list[VolumeRow]) -> str:
    sessions = [session for volume in volumes for session in volume["sessions"]]
    live = sum(volume["sessions"][-1]["size"] for volume in volumes)
    spaces = [((v["own"] or 0) + (v["shared"] or 0), v["compression"] or 0) for v in volumes]
    stored = sum(size for size, _ in spaces)
    plain = sum(size * compression for size, compression in spaces)
    figures = [
        (size_text(status["stored"]), "stored"),
        ("?" if status["free"] is None else size_text(status["free"]), "free on the disk"),
        (str(len(sessions)), f"sessions of {len(volumes)} volumes"),
        (size_text(live), "size of the volumes"),
        *([(ratio_text(plain / stored), "compression")] if stored else []),
    ]
    return f'<div class="figures">{"".join(f"<div><b>{escape(a)}</b><span>{escape(b)}</span></div>" for a, b in figures)}</div>'


def _health(status: StatusRow, volumes: list[VolumeRow], now: int) -> str:
    items = [("bad", problem) for problem in status["problems"]]
    items.append(_check("Scrub", status["scrubbed"], now))
    if status["part_scrubbed"]:
        items.append(_check("Scrub of a part", status["part_scrubbed"], now))
    if status["unproven"]:
        items.append(_longest(status["unproven"], now))
    items += [_check(f"Verify {row_name(volume)}", volume["verified"], now) for volume in volumes]
    for volume in status["volumes"]:
        if volume["latest"] is None:
            items.append(("warn", f"{volume['name']} was never backed up"))
    if status["next_run"]:
        items.append(("good", f"The next backup is due {status['next_run']}"))
    order = ("bad", "warn", "good")
    items.sort(key=lambda item: order.index(item[0]))
    return f'<ul class="health">{"".join(f"""<li class="{kind}">{escape(text)}</li>""" for kind, text in items)}</ul>'


def _longest(row: UnprovenRow, now: int) -> tuple[str, str]:
    days = max(0, now - row["since"]) // 86400
    what = "verified" if row["verified"] else "stored, and never verified,"
    text = f"Longest unproven: {row['name']} {row['session']}, {what} {_ago(days)}"
    return ("good" if days <= OLD else "warn"), text


def _ago(days: int) -> str:
    return "today" if days == 0 else "yesterday" if days == 1 else f"{days} days ago"


def _check(what: str, check: CheckRow | None, now: int) -> tuple[str, str]:
    if check is None:
        return "warn", f"{what}: never done"
    days = max(0, now - check["time"]) // 86400
    when = _ago(days)
    if not check["ok"]:
        return "bad", f"{what}: damage found, {when}"
    return ("good" if days <= OLD else "warn"), f"{what}: sound, {when}"


def _qube(qube: str, volumes: list[VolumeRow], today: datetime.date) -> str:
    heads = (
        "Volume",
        "Sessions",
        "Newest",
        "Size",
        "Only its own",
        "Shared",
        "Compressed",
        "Deduplicated",
    )
    rows = "".join(_row(volume) for volume in volumes)
    titles = "".join(
        f"<th{' class=number' if at > 2 or at == 1 else ''}>{title}</th>"
        for at, title in enumerate(heads)
    )
    times = [session["time"] for volume in volumes for session in volume["sessions"]]
    label = escape(f"Sessions of {qube} in the last year")
    return (
        f'<section><h3>{escape(qube)}</h3><div class="scroll"><table><thead><tr>{titles}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><div class="scroll">{calendar(times, today, label)}</div>{_KEY}</section>'
    )


def _row(volume: VolumeRow) -> str:
    newest = volume["sessions"][-1]
    cells = [
        (volume["volume"] if volume["qube"] else "", ""),
        (str(len(volume["sessions"])), "number"),
        (newest["session"], ""),
        (size_text(newest["size"]), "number"),
        (_or_nothing(size_text, volume["own"]), "number"),
        (_or_nothing(size_text, volume["shared"]), "number"),
        (_or_nothing(ratio_text, volume["compression"]), "number"),
        (_or_nothing(ratio_text, volume["deduplication"]), "number"),
    ]
    return (
        "<tr>"
        + "".join(f'<td class="{kind}">{escape(text)}</td>' for text, kind in cells)
        + "</tr>"
    )


def _or_nothing(text: Callable[[float], str], value: float | None) -> str:
    return "" if value is None else text(value)

# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak list``: the volumes in the archive, or the sessions of some."""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import given, key_option, space_option
from backup_vm.terminal.text import ratio_text, size_text, table, waiting_text

if TYPE_CHECKING:
    from backup_vm.reporting.rows import VolumeRow
    from backup_vm.reporting.view import View
    from backup_vm.volumes import Named


def add_to(commands: Any) -> None:
    """Declare the command."""
    show = commands.add_parser(
        "list",
        help="show volumes, or the sessions of one, and the space they take up",
        description=(
            "Shows the volumes in the archive; of a qube or volume that is named, or with --tag,"
            " its sessions."
        ),
    )
    show.add_argument(
        "volume",
        nargs="?",
        metavar="QUBE[/VOLUME]",
        help="whose sessions to show (default: all volumes)",
    )
    show.add_argument("--tag", type=given, metavar="TAG", help="only sessions with this tag")
    space_option(show)
    key_option(show)
    show.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.archive import holding
    from backup_vm.reporting.view import View

    context = Context(options)
    with context.contents() as contents:
        looking = contents.archive.looking

        def look() -> "tuple[View, list[Named], list[VolumeRow]]":
            now = contents.now() if looking.count else contents
            chosen = now.select(options.volume)
            seen = View.of(now.archive, now.volumes, options.space)
            return seen, chosen, [seen.row(volume) for volume in chosen]

        seen, chosen, data = looking.steady(look, lambda found: found[0].spoilt.values())
        for line in (
            *map(str, contents.archive.damaged.values()),
            *seen.spoilt_lines(chosen),
        ):
            context.warn(line)
        if options.tag:
            for volume in data:
                volume["sessions"] = [
                    session for session in volume["sessions"] if options.tag in session["tags"]
                ]
        text = _sessions(data) if options.volume or options.tag else _volumes(seen, chosen)
        held = holding.state(contents.archive)
        if held is not None:
            text = "\n".join([text, *waiting_text(held.waiting, held.waiting_until)])
    context.result({"volumes": data}, text)
    return 0


def _volumes(seen: "View", volumes: "list[Named]") -> str:
    heads = ["VOLUME", "SESSIONS", "LATEST", "SIZE", "OWN", "SHARED", "COMPRESSED"]
    if seen.names:
        heads.append("NAMES")
    rows = [heads]
    for volume in volumes:
        use, latest = seen.use(volume), volume.sessions[-1]
        row = [volume.name, str(len(volume.sessions)), latest.name, size_text(latest.clear.size)]
        if use:
            row += [size_text(use.own), size_text(use.shared), ratio_text(use.compression)]
        else:
            row += ["", "", ""]
        if seen.names:
            row.append(size_text(seen.names_of(volume.id)))
        rows.append(row)
    return table(rows, frozenset({1, 3, 4, 5, 6, 7}))


def _sessions(volumes: "list[VolumeRow]") -> str:
    from backup_vm.reporting.rows import row_name

    rows = [["VOLUME", "SESSION", "SIZE", "CHANGED", "FREES", "", "TAGS"]]
    for volume in volumes:
        name = row_name(volume)
        for session in volume["sessions"]:
            frees = "" if session["frees"] is None else size_text(session["frees"])
            words = [" ".join(session["tags"]), session["note"] and f"“{session['note']}”"]
            row = [
                name,
                session["session"],
                size_text(session["size"]),
                size_text(session["changed"]),
                frees,
            ]
            kind = ["full"] * session["full"] + ["spoilt"] * (session["spoilt"] is not None)
            rows.append([*row, ", ".join(kind), " ".join(filter(None, words))])
    return table(rows, frozenset({2, 3, 4}))

# SPDX-License-Identifier: GPL-2.0-or-later
"""``find --session all`` of ``sparsebak files``: in which sessions files of a name are."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.files.listing import TYPES
from backup_vm.cli.files.opening import Troubles, opened_volume, path_of
from backup_vm.terminal.text import count_text, table

if TYPE_CHECKING:
    from backup_vm.archive.sessions import Session
    from backup_vm.files.session import SessionFiles
    from backup_vm.jobs.finding import Looked, Span, Trouble


def find_in_all(options: argparse.Namespace) -> int:
    """Print the files that fit, each with the sessions from which and to which it was so."""
    from backup_vm.errors import Exit
    from backup_vm.jobs.finding import find, plain, query_of

    context = Context(options)
    troubles = Troubles(context)
    name = None if options.name is None else os.fsencode(options.name)
    with opened_volume(context) as (volume, files):

        def opened(session: "Session") -> "SessionFiles":
            return files.open(session).files

        def trouble(session: "Session") -> "Trouble":
            return lambda path, text: troubles(path, f"{session.name}: {text}")

        top = plain(path_of(context))
        query = query_of(top, name, TYPES.get(options.type))
        names = files.names(context.warn)
        found, looked = find(volume.sessions, names, query, top, opened, trouble)
        unread = files.unread()
    for line in unread:
        context.warn(line)
    _tell(context, looked)
    if found or context.json:
        context.result({"files": list(map(_data, found))}, _table(found))
    if looked.damaged or unread:
        return Exit.DAMAGED
    return Exit.FAILED if troubles.count or looked.incomplete else Exit.OK


def _table(found: "list[Span]") -> str:
    from backup_vm.files.session import shown
    from backup_vm.files.showing import time_text

    rows = [["FROM", "UNTIL", "SIZE", "MODIFIED", "PATH"]]
    for one in found:
        about = [str(one.about.size), time_text(one.about.mtime)]
        rows.append([one.first.name, one.last.name, *about, shown(one.path)])
    return table(rows, frozenset({2}))


def _data(one: "Span") -> dict[str, Any]:
    """What --json prints of a file."""
    from backup_vm.files.showing import text_of, type_of

    return {
        "path": text_of(one.path),
        "type": type_of(one.about.mode),
        **{key: value for key, value in one.about._asdict().items() if key != "node"},
        "first": one.first.name,
        "last": one.last.name,
        "sessions": one.sessions,
    }


def _tell(context: Context, looked: "Looked") -> None:
    """What must be known of how it was looked."""
    for text in looked.gone:
        context.warn(text)
    if looked.read:
        what = count_text(looked.read, "session")
        context.say(
            f"{what} without an index of names, read as a whole; see: sparsebak files index"
        )
    if looked.incomplete:
        what = count_text(looked.incomplete, "session")
        context.warn(f"{what} had files that could not be read when their names were indexed")

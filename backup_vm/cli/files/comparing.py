# SPDX-License-Identifier: GPL-2.0-or-later
"""What is between sessions of a volume: ``history`` and ``diff`` of ``sparsebak files``."""

import argparse

from backup_vm.cli.context import Context
from backup_vm.cli.files.opening import Troubles, opened_volume, path_of, told
from backup_vm.terminal.text import table


def history(options: argparse.Namespace) -> int:
    """Show in which sessions a file changed."""
    from backup_vm.errors import Exit, SparsebakError
    from backup_vm.files.session import shown
    from backup_vm.files.showing import data_of, time_text

    context = Context(options)
    with opened_volume(context) as (volume, files):
        names = files.names(context.warn)
        found = files.history(path_of(context), list(volume.sessions), names)
        unread = files.unread()
    for line in unread:
        context.warn(line)
    if not found:
        raise SparsebakError(f"no session of {volume.name} has {shown(path_of(context))}")
    rows = [["SESSION", "", "SIZE", "MODIFIED"]]
    for session, what, one in found:
        about = ["", ""] if one is None else [str(one.stat.size), time_text(one.stat.mtime)]
        rows.append([session, what, *about])
    data = [
        {"session": session, "change": what, **(data_of(one.path, one.stat) if one else {})}
        for session, what, one in found
    ]
    context.result({"sessions": data}, table(rows, frozenset({2})))
    return Exit.DAMAGED if unread else Exit.OK


def diff(options: argparse.Namespace) -> int:
    """Show which files differ between two sessions."""
    from backup_vm.files.changes import differences
    from backup_vm.files.session import shown
    from backup_vm.files.showing import data_of, text_of
    from backup_vm.terminal import output

    context = Context(options)
    troubles, rows = Troubles(context), []
    with opened_volume(context) as (volume, files):
        old, new = (
            told(context, files.open(files.find(name))) for name in (options.old, options.new)
        )
        for change in differences(old, new, path_of(context), troubles, options.contents):
            if context.json:
                sides = {"old": change.old, "new": change.new}
                said = {word: data_of(one.path, one.stat) for word, one in sides.items() if one}
                rows.append({"change": change.what, "path": text_of(change.path), **said})
            else:
                output.put(f"{change.what} {shown(change.path)}")
    if context.json:
        context.result({"changes": rows}, "")
    return troubles.code(old.files, new.files)

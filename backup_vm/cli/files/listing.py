# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in one session: ``ls``, ``tree``, ``find`` and ``stat`` of ``sparsebak files``."""

import argparse
import os
import stat as modes
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.files.opening import Troubles, opened_session, path_of
from backup_vm.terminal.text import table

if TYPE_CHECKING:
    from backup_vm.files.session import Found


def ls(options: argparse.Namespace) -> int:
    """List a folder, or show a file."""
    from backup_vm.files.session import Found, joined, shown
    from backup_vm.files.showing import NUMBERS, data_of, row_of

    context = Context(options)
    troubles = Troubles(context)
    with opened_session(context) as side:
        top, found = side.files.find(path_of(context)), []
        if modes.S_ISDIR(top.stat.mode):
            for entry in side.files.names(top.node):
                if entry.stat is None:
                    troubles(joined(top.path, entry.name), entry.trouble)
                else:
                    found.append((entry.name, Found(entry.name, entry.node, entry.stat)))
        else:
            found.append((top.path, top))
        rows = []
        for name, one in found:
            text = shown(name)
            if options.long and modes.S_ISLNK(one.stat.mode):
                text += f" -> {shown(side.files.link(one.node))}"
            rows.append(row_of(text, one.stat) if options.long else [text])
    context.result(
        {"files": [data_of(joined(top.path, name), one.stat) for name, one in found]},
        table(rows, NUMBERS if options.long else frozenset()),
    ) if rows or context.json else None
    return troubles.code()


def tree(options: argparse.Namespace) -> int:
    """Show all below a folder, indented."""
    from backup_vm.files.session import DEEPEST, shown

    depth = DEEPEST if options.depth is None else options.depth

    def line(deep: int, found: "Found") -> str:
        name = shown(found.path.rpartition(b"/")[2])
        return "  " * deep + name + ("/" if modes.S_ISDIR(found.stat.mode) else "")

    return _walked(Context(options), line, lambda found: True, max(depth, 1))


def find(options: argparse.Namespace) -> int:
    """Print the paths below a folder that fit."""
    from backup_vm.files.session import DEEPEST, shown

    types = {"f": modes.S_IFREG, "d": modes.S_IFDIR, "l": modes.S_IFLNK}
    wanted = types.get(options.type)
    pattern = None if options.name is None else os.fsencode(options.name)

    def fits(found: "Found") -> bool:
        name = found.path.rpartition(b"/")[2]
        return (wanted is None or modes.S_IFMT(found.stat.mode) == wanted) and (
            pattern is None or fnmatchcase(name, pattern)
        )

    return _walked(Context(options), lambda deep, found: shown(found.path), fits, DEEPEST)


def _walked(context: Context, line: Any, fits: Any, depth: int) -> int:
    """Print what of a walk fits, as it is found; with --json all of it at the end."""
    from backup_vm.errors import UsageError
    from backup_vm.files.session import shown
    from backup_vm.files.showing import data_of
    from backup_vm.terminal import output

    troubles, rows = Troubles(context), []
    with opened_session(context) as side:
        top = side.files.find(path_of(context))
        if not modes.S_ISDIR(top.stat.mode):
            raise UsageError(f"{shown(top.path)} is not a folder")
        if context.options.action == "tree" and not context.json:
            output.put(shown(top.path))
        for deep, found in side.files.walk(top, troubles, depth):
            if not fits(found):
                continue
            if context.json:
                rows.append(data_of(found.path, found.stat))
            else:
                output.put(line(deep, found))
    if context.json:
        context.result({"files": rows}, "")
    return troubles.code(side)


def stat(options: argparse.Namespace) -> int:
    """Show all that is said of a file."""
    from backup_vm.files.showing import data_of, lines_of, text_of

    context = Context(options)
    with opened_session(context) as side:
        found = side.files.find(path_of(context), follow=False)
        is_link = modes.S_ISLNK(found.stat.mode)
        target = side.files.link(found.node) if is_link else b""
        attributes = side.files.attributes(found.node)
        kept = {name: value.hex() for name, value in attributes.items()}
        more = {"target": text_of(target)} if is_link else {}
        context.result(
            {**data_of(found.path, found.stat), **more, "attributes": kept},
            "\n".join(lines_of(found.path, found.stat, target, attributes)),
        )
    return 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in one session: ``ls``, ``tree``, ``find`` and ``stat`` of ``sparsebak files``."""

import argparse
import json
import os
import stat as modes
from contextlib import closing
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.files.opening import Troubles, opened_session, path_of
from backup_vm.terminal.text import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backup_vm.files.session import Found, SessionFiles


TYPES = {"f": modes.S_IFREG, "d": modes.S_IFDIR, "l": modes.S_IFLNK}
"""What --type says."""
_TOGETHER = 1000
"""Lines of ``ls -l`` in one table."""


def ls(options: argparse.Namespace) -> int:
    """List a folder, or show a file."""
    from backup_vm.files.session import joined, shown
    from backup_vm.files.showing import NUMBERS, data_of, row_of
    from backup_vm.terminal import output

    context = Context(options)
    troubles = Troubles(context)

    def line(one: "Found") -> list[str]:
        text = shown(one.path)
        if not options.long:
            return [text]
        if modes.S_ISLNK(one.stat.mode):
            text += f" -> {shown(files.link(one.node))}"
        return row_of(text, one.stat)

    with opened_session(context) as files:
        top = files.find(path_of(context))
        found = _in_folder(files, top, troubles)
        if context.json:
            where = top.path if modes.S_ISDIR(top.stat.mode) else b"/"
            _put_data(data_of(joined(where, one.path.lstrip(b"/")), one.stat) for one in found)
        while not context.json and (rows := [line(one) for one in islice(found, _TOGETHER)]):
            output.put(table(rows, NUMBERS if options.long else frozenset()))
    return troubles.code()


def _in_folder(files: "SessionFiles", top: "Found", troubles: Troubles) -> "Iterator[Found]":
    """What is in a folder, with names for paths; what is no folder, itself."""
    from backup_vm.files.session import Found, joined

    if not modes.S_ISDIR(top.stat.mode):
        yield top
        return
    with closing(files.names(top.node)) as entries:
        for entry in entries:
            if entry.stat is None:
                troubles(joined(top.path, entry.name), entry.trouble)
            else:
                yield Found(entry.name, entry.node, entry.stat)


def _put_data(rows: "Iterable[dict[str, Any]]") -> None:
    """Print files as --json does, one after the other: there may be millions. What cannot be read
    leaves an object of those before it, or none.
    """
    from backup_vm.errors import SparsebakError
    from backup_vm.terminal import output

    begun = '{"files": ['
    try:
        for row in rows:
            output.put(begun + json.dumps(row), end="")
            begun = ", "
    except SparsebakError:
        if begun == ", ":
            output.put("]}")
        raise
    output.put("]}" if begun == ", " else begun + "]}")


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

    if options.session == "all":
        from backup_vm.cli.files.finding import find_in_all

        return find_in_all(options)
    wanted = TYPES.get(options.type)
    pattern = None if options.name is None else os.fsencode(options.name)

    def fits(found: "Found") -> bool:
        name = found.path.rpartition(b"/")[2]
        return (wanted is None or modes.S_IFMT(found.stat.mode) == wanted) and (
            pattern is None or fnmatchcase(name, pattern)
        )

    return _walked(Context(options), lambda deep, found: shown(found.path), fits, DEEPEST)


def _walked(context: Context, line: Any, fits: Any, depth: int) -> int:
    """Print what of a walk fits, as it is found."""
    from backup_vm.errors import UsageError
    from backup_vm.files.session import shown
    from backup_vm.files.showing import data_of
    from backup_vm.terminal import output

    troubles = Troubles(context)
    with opened_session(context) as files:
        top = files.find(path_of(context))
        if not modes.S_ISDIR(top.stat.mode):
            raise UsageError(f"{shown(top.path)} is not a folder")
        walked = files.walk(top, troubles, depth)
        found = ((deep, one) for deep, one in walked if fits(one))
        if context.json:
            _put_data(data_of(one.path, one.stat) for _, one in found)
            return troubles.code(files)
        if context.options.action == "tree":
            output.put(shown(top.path))
        for deep, one in found:
            output.put(line(deep, one))
    return troubles.code(files)


def stat(options: argparse.Namespace) -> int:
    """Show all that is said of a file."""
    from backup_vm.files.showing import data_of, lines_of, text_of

    context = Context(options)
    with opened_session(context) as files:
        found = files.find(path_of(context), follow=False)
        is_link = modes.S_ISLNK(found.stat.mode)
        target = files.link(found.node) if is_link else b""
        attributes = files.attributes(found.node)
        kept = {name: value.hex() for name, value in attributes.items()}
        more = {"target": text_of(target)} if is_link else {}
        context.result(
            {**data_of(found.path, found.stat), **more, "attributes": kept},
            "\n".join(lines_of(found.path, found.stat, target, attributes)),
        )
    return 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak files``: files out of sessions, without a mount and without being root."""

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import add_common, key_option, path, session_option, volume_argument
from backup_vm.terminal.text import count_text, size_text, table

if TYPE_CHECKING:
    from backup_vm.files.changes import Side
    from backup_vm.files.session import Found
    from backup_vm.jobs.files import VolumeFiles
    from backup_vm.volumes import Named


def add_to(commands: Any) -> None:
    """Declare the command."""
    files = commands.add_parser(
        "files",
        help="list, show, compare and copy files out of sessions; needs the key",
        description=(
            "Shows and copies what is in a session's file system (ext2 to ext4, XFS, Btrfs, also in"
            " partitions), without mounting it and without being root. A child without any rights"
            " parses it. Names and contents are as hostile as the qube they are from."
        ),
    )
    actions = files.add_subparsers(
        dest="action", required=True, metavar="ACTION", help="what to do"
    )

    def action(name: str, run: Any, text: str, sentences: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=sentences)
        volume_argument(parser, "whose files")
        parser.add_argument(
            "--partition",
            type=int,
            metavar="N",
            help="which partition (default: the only one with a file system that can be read)",
        )
        key_option(parser)
        parser.set_defaults(run=run)
        return parser

    def path_argument(parser: argparse.ArgumentParser, many: str | None = None) -> None:
        text = "a path in the file system" + (" (default: /)" if many == "?" else "")
        more = {} if many is None else {"nargs": many, "default": "/"}
        parser.add_argument("path", metavar="PATH", help=text, **more)  # type: ignore[arg-type]

    listing = action("ls", _ls, "list a folder", "Lists a folder, or shows a file.")
    path_argument(listing, "?")
    listing.add_argument("-l", "--long", action="store_true", help="with mode, owner, size, time")
    tree = action("tree", _tree, "show all below a folder", "Shows all that is below a folder.")
    path_argument(tree, "?")
    tree.add_argument("--depth", type=int, metavar="N", help="no deeper than this")
    find = action("find", _find, "find files by name", "Prints the paths below a folder that fit.")
    path_argument(find, "?")
    find.add_argument("--name", metavar="PATTERN", help="of the name: *, ? and [...] as in a shell")
    find.add_argument(
        "--type", choices="fdl", help="f: regular files, d: folders, l: symbolic links"
    )
    about = action(
        "stat", _stat, "show all that is said of a file", "Shows what is said of a file."
    )
    path_argument(about)
    path_argument(
        action("cat", _cat, "write a file to standard output", "Writes a file to standard output.")
    )
    copy = action(
        "cp",
        _cp,
        "copy files and folders",
        "Copies files, and folders with all that is in them: holes, times, attributes, links, and"
        " owners if root. Nothing that exists is replaced; nothing outside of TARGET is written.",
    )
    copy.add_argument("path", nargs="+", metavar="PATH", help="paths in the file system")
    copy.add_argument("target", type=path, metavar="TARGET", help="a folder, or a new name")
    copy.add_argument(
        "--privileged",
        action="store_true",
        help="also devices, setuid, setgid and sticky bits, and trusted and security attributes",
    )
    history = action(
        "history",
        _history,
        "show in which sessions a file changed",
        "Shows the sessions in which a file is not what it was in the one before.",
    )
    path_argument(history)
    diff = action(
        "diff",
        _diff,
        "show which files differ between two sessions",
        "Shows which files differ: + is new, - is gone, M has other contents, m other properties.",
    )
    for name, text in (("old", "S1"), ("new", "S2")):
        diff.add_argument(name, metavar=text, help="a session: its time, a tag, or 'latest'")
    path_argument(diff, "?")
    diff.add_argument(
        "--contents",
        action="store_true",
        help="compare contents also where time, size and inode are the same",
    )
    for name, parser in actions.choices.items():
        if name not in ("history", "diff"):
            session_option(parser)
        add_common(parser, again=True)


class _Troubles:
    """What could not be read is told, and remembered for the exit code."""

    def __init__(self, context: Context) -> None:
        self._context, self.count = context, 0

    def __call__(self, where: bytes, text: str) -> None:
        from backup_vm.files.session import shown

        self.count += 1
        self._context.warn(f"{shown(where)}: {text}")

    def code(self, *sides: "Side") -> int:
        from backup_vm.errors import Exit

        if any(side.files.damaged for side in sides):
            return Exit.DAMAGED
        return Exit.FAILED if self.count else Exit.OK


@contextmanager
def _volume(context: Context) -> "Iterator[tuple[Named, VolumeFiles]]":
    from backup_vm.jobs.files import VolumeFiles

    with context.contents(needs_key=True) as contents:
        volume = contents.one(context.options.volume)
        with VolumeFiles(contents, volume, context.options.partition) as files:
            yield volume, files


def _told(context: Context, side: "Side") -> "Side":
    """The same, after what must be known of it is said."""
    for note in side.files.notes:
        context.warn(f"{side.files.name}: {note}")
    return side


@contextmanager
def _session(context: Context) -> "Iterator[Side]":
    from backup_vm.volumes import find_session

    with _volume(context) as (volume, files):
        yield _told(context, files.open(find_session(volume, context.options.session)))


def _path(context: Context) -> bytes:
    return os.fsencode(context.options.path)


def _ls(options: argparse.Namespace) -> int:
    from backup_vm.files.session import Found, joined, shown
    from backup_vm.files.showing import NUMBERS, data_of, row_of

    context = Context(options)
    troubles = _Troubles(context)
    with _session(context) as side:
        top, found = side.files.find(_path(context)), []
        if stat.S_ISDIR(top.stat.mode):
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
            if options.long and stat.S_ISLNK(one.stat.mode):
                text += f" -> {shown(side.files.link(one.node))}"
            rows.append(row_of(text, one.stat) if options.long else [text])
    context.result(
        {"files": [data_of(joined(top.path, name), one.stat) for name, one in found]},
        table(rows, NUMBERS if options.long else frozenset()),
    ) if rows or context.json else None
    return troubles.code()


def _tree(options: argparse.Namespace) -> int:
    from backup_vm.files.session import DEEPEST, shown

    depth = DEEPEST if options.depth is None else options.depth

    def line(deep: int, found: "Found") -> str:
        name = shown(found.path.rpartition(b"/")[2])
        return "  " * deep + name + ("/" if stat.S_ISDIR(found.stat.mode) else "")

    return _walked(Context(options), line, lambda found: True, max(depth, 1))


def _find(options: argparse.Namespace) -> int:
    from backup_vm.files.session import DEEPEST, shown

    types = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK}
    wanted = types.get(options.type)
    pattern = None if options.name is None else os.fsencode(options.name)

    def fits(found: "Found") -> bool:
        name = found.path.rpartition(b"/")[2]
        return (wanted is None or stat.S_IFMT(found.stat.mode) == wanted) and (
            pattern is None or fnmatchcase(name, pattern)
        )

    return _walked(Context(options), lambda deep, found: shown(found.path), fits, DEEPEST)


def _walked(context: Context, line: Any, fits: Any, depth: int) -> int:
    """Print what of a walk fits, as it is found; with --json all of it at the end."""
    from backup_vm.errors import UsageError
    from backup_vm.files.session import shown
    from backup_vm.files.showing import data_of
    from backup_vm.terminal import output

    troubles, rows = _Troubles(context), []
    with _session(context) as side:
        top = side.files.find(_path(context))
        if not stat.S_ISDIR(top.stat.mode):
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


def _stat(options: argparse.Namespace) -> int:
    from backup_vm.files.showing import data_of, lines_of, text_of

    context = Context(options)
    with _session(context) as side:
        found = side.files.find(_path(context), follow=False)
        is_link = stat.S_ISLNK(found.stat.mode)
        target = side.files.link(found.node) if is_link else b""
        attributes = side.files.attributes(found.node)
        kept = {name: value.hex() for name, value in attributes.items()}
        more = {"target": text_of(target)} if is_link else {}
        context.result(
            {**data_of(found.path, found.stat), **more, "attributes": kept},
            "\n".join(lines_of(found.path, found.stat, target, attributes)),
        )
    return 0


def _cat(options: argparse.Namespace) -> int:
    from backup_vm.errors import SparsebakError, UsageError
    from backup_vm.files.session import shown
    from backup_vm.terminal import output

    context = Context(options)
    if context.json:
        raise UsageError("what cat writes is no data for programs", "leave out --json")
    watched = bool(sys.stdout is not None and sys.stdout.isatty())
    with _session(context) as side:
        found = side.files.find(_path(context))
        if not stat.S_ISREG(found.stat.mode):
            raise SparsebakError(f"{shown(found.path)} is not a regular file")
        reached = 0
        for offset, data in side.files.contents(found):
            _zeros(offset - reached)
            if watched:  # a terminal obeys what it is sent
                lines = data.decode("utf-8", "replace").split("\n")
                output.put_bytes("\n".join(map(_visible, lines)).encode())
            else:
                output.put_bytes(data)
            reached = offset + len(data)
        _zeros(found.stat.size - reached)
    return 0


def _visible(line: str) -> str:
    from common.text import printable

    return "\t".join(map(printable, line.split("\t")))


def _zeros(count: int) -> None:
    from backup_vm.terminal import output

    while count > 0:
        output.put_bytes(bytes(min(count, 1 << 20)))
        count -= 1 << 20


def _cp(options: argparse.Namespace) -> int:
    from backup_vm.errors import Exit, UsageError
    from backup_vm.files.copying import Copier
    from backup_vm.files.session import shown

    context = Context(options)
    target: Path = options.target
    inside = target.is_dir()
    if len(options.path) > 1 and not inside:
        raise UsageError(f"{target} is not a folder", "several files need one to go to")
    with _session(context) as side:
        chosen = []
        for name in options.path:
            found = side.files.find(os.fsencode(name), follow=False)
            base = os.fsdecode(found.path.rpartition(b"/")[2])
            if inside and not base:
                raise UsageError(f"{target} exists", "to copy / give a name that is not there yet")
            chosen.append((found, target / base if inside else target))
        size = sum(one.stat.size for one, _ in chosen)
        whole = all(stat.S_ISREG(one.stat.mode) for one, _ in chosen)
        with context.progress("copy", size if whole else None) as progress:
            ticks = progress.advance if whole else lambda size: None
            copier = Copier(side.files, context.warn, options.privileged, ticks)
            for found, where in chosen:
                copier.copy(found, where)
        done = copier.done
        if done.left_out:
            context.warn(
                f"{count_text(done.left_out, 'thing')} left out (devices, setuid bits, attributes"
                " that give rights): to copy them give --privileged"
            )
        if done.limited:
            context.warn(f"not kept, for this folder cannot: {', '.join(sorted(done.limited))}")
        names = ", ".join(shown(one.path) for one, _ in chosen[:3])
        context.done(
            {
                "files": done.files,
                "size": done.size,
                "failed": done.troubles,
                "left_out": done.left_out,
                "target": str(target),
            },
            f"{target}: {names} as of {side.files.name}, {count_text(done.files, 'file')},"
            f" {size_text(done.size)}.",
        )
    return Exit.DAMAGED if done.damaged else Exit.FAILED if done.troubles else Exit.OK


def _history(options: argparse.Namespace) -> int:
    from backup_vm.errors import SparsebakError
    from backup_vm.files.session import shown
    from backup_vm.files.showing import data_of, time_text

    context = Context(options)
    with _volume(context) as (volume, files):
        found = files.history(_path(context), list(volume.sessions))
    if not found:
        raise SparsebakError(f"no session of {volume.name} has {shown(_path(context))}")
    rows = [["SESSION", "", "SIZE", "MODIFIED"]]
    for session, what, one in found:
        about = ["", ""] if one is None else [str(one.stat.size), time_text(one.stat.mtime)]
        rows.append([session, what, *about])
    data = [
        {"session": session, "change": what, **(data_of(one.path, one.stat) if one else {})}
        for session, what, one in found
    ]
    context.result({"sessions": data}, table(rows, frozenset({2})))
    return 0


def _diff(options: argparse.Namespace) -> int:
    from backup_vm.files.changes import differences
    from backup_vm.files.session import shown
    from backup_vm.files.showing import data_of, text_of
    from backup_vm.terminal import output
    from backup_vm.volumes import find_session

    context = Context(options)
    troubles, rows = _Troubles(context), []
    with _volume(context) as (volume, files):
        old, new = (
            _told(context, files.open(find_session(volume, name)))
            for name in (options.old, options.new)
        )
        for change in differences(old, new, _path(context), troubles, options.contents):
            if context.json:
                sides = {"old": change.old, "new": change.new}
                said = {word: data_of(one.path, one.stat) for word, one in sides.items() if one}
                rows.append({"change": change.what, "path": text_of(change.path), **said})
            else:
                output.put(f"{change.what} {shown(change.path)}")
    if context.json:
        context.result({"changes": rows}, "")
    return troubles.code(old, new)

# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak files``: files out of sessions, without a mount and without being root.

One action is one function: ``listing`` has those that show what a session has, ``taking`` those
that take contents out of it, ``comparing`` those between sessions, ``finding`` and ``indexing``
those of names in all of them.
"""

import argparse
from collections.abc import Callable
from typing import Any

from backup_vm.cli.files import comparing, indexing, listing, taking
from backup_vm.cli.options import add_common, path, session_option, volume_argument
from backup_vm.cli.reading import partition_option, reading_options

_Declares = Callable[[argparse.ArgumentParser], None]
_Action = Callable[..., argparse.ArgumentParser]
"""Declares an action: its name, what runs it, its help in a few words, and in sentences; and what
declares the volume, if that is not one that must be named.
"""


def _one_volume(parser: argparse.ArgumentParser) -> None:
    volume_argument(parser, "whose files")


def _any_volume(parser: argparse.ArgumentParser) -> None:
    text = "whose files (default: all volumes)"
    parser.add_argument("volume", nargs="?", metavar="QUBE/VOLUME", help=text)


def add_to(commands: Any) -> None:
    """Declare the command."""
    files = commands.add_parser(
        "files",
        help="list, show, compare and copy files out of sessions; needs the key",
        description=(
            "Shows and copies what is in a session's file system (ext2 to ext4, XFS, Btrfs, NTFS,"
            " FAT, exFAT, also in partitions and in LVM), without mounting it and without being"
            " root. A child without any rights parses it. Names and contents are as hostile as the"
            " qube they are from."
        ),
    )
    actions = files.add_subparsers(
        dest="action", required=True, metavar="ACTION", help="what to do"
    )

    def action(
        name: str, run: Any, text: str, sentences: str, volume: _Declares = _one_volume
    ) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=sentences)
        volume(parser)
        partition_option(parser)
        reading_options(parser)
        parser.set_defaults(run=run)
        return parser

    _declare_listing(action)
    _declare_taking(action)
    _declare_comparing(action)
    _declare_indexing(action)
    for parser in actions.choices.values():
        add_common(parser, again=True)


def _path_argument(parser: argparse.ArgumentParser, many: str | None = None) -> None:
    text = "a path in the file system" + (" (default: /)" if many == "?" else "")
    more = {} if many is None else {"nargs": many, "default": "/"}
    parser.add_argument("path", metavar="PATH", help=text, **more)  # type: ignore[arg-type]


def _declare_listing(action: _Action) -> None:
    ls = action("ls", listing.ls, "list a folder", "Lists a folder, or shows a file.")
    _path_argument(ls, "?")
    ls.add_argument("-l", "--long", action="store_true", help="with mode, owner, size, time")
    tree = action(
        "tree", listing.tree, "show all below a folder", "Shows all that is below a folder."
    )
    _path_argument(tree, "?")
    tree.add_argument("--depth", type=int, metavar="N", help="no deeper than this")
    find = action(
        "find",
        listing.find,
        "find files by name",
        "Prints the paths below a folder that fit; with --session all those of all sessions, each"
        " with the sessions from which and to which the file was the same.",
    )
    _path_argument(find, "?")
    find.add_argument("--name", metavar="PATTERN", help="of the name: *, ? and [...] as in a shell")
    find.add_argument(
        "--type", choices="fdl", help="f: regular files, d: folders, l: symbolic links"
    )
    about = action(
        "stat", listing.stat, "show all that is said of a file", "Shows what is said of a file."
    )
    _path_argument(about)
    for parser in (ls, tree, about):
        session_option(parser)
    session_option(find, every=True)


def _declare_taking(action: _Action) -> None:
    cat = action(
        "cat",
        taking.cat,
        "write a file to standard output",
        "Writes a file to standard output.",
    )
    _path_argument(cat)
    copy = action(
        "cp",
        taking.cp,
        "copy files and folders",
        "Copies files, and folders with all that is in them: holes, times, attributes, links, and"
        " owners if root. Nothing that exists is replaced; nothing outside of TARGET is written.",
    )
    copy.add_argument("path", nargs="+", metavar="PATH", help="paths in the file system")
    copy.add_argument("target", type=path, metavar="TARGET", help="a folder, or a new name")
    pack = action(
        "tar",
        taking.tar,
        "write a folder to standard output, as a tar file",
        "Writes a file, or a folder with all that is in it, to standard output as a tar file (pax):"
        " holes, owners, times, links and attributes are kept.",
    )
    _path_argument(pack, "?")
    for parser in (copy, pack):
        parser.add_argument(
            "--privileged",
            action="store_true",
            help="also devices, setuid, setgid and sticky bits, and trusted and security"
            " attributes",
        )
    for parser in (cat, copy, pack):
        session_option(parser)


def _declare_comparing(action: _Action) -> None:
    history = action(
        "history",
        comparing.history,
        "show in which sessions a file changed",
        "Shows the sessions in which a file is not what it was in the one before.",
    )
    _path_argument(history)
    diff = action(
        "diff",
        comparing.diff,
        "show which files differ between two sessions",
        "Shows which files differ: + is new, - is gone, M has other contents, m other properties.",
    )
    for name, text in (("old", "S1"), ("new", "S2")):
        diff.add_argument(name, metavar=text, help="a session: its time, a tag, or 'latest'")
    _path_argument(diff, "?")
    diff.add_argument(
        "--contents",
        action="store_true",
        help="compare contents also where time, size and inode are the same",
    )


def _declare_indexing(action: _Action) -> None:
    index = action(
        "index",
        indexing.index,
        "keep an index of the names in sessions",
        "Stores an index of the names in each session that has none, sealed, so that 'find"
        " --session all' and 'history' need not read the sessions.",
        _any_volume,
    )
    index.add_argument("--again", action="store_true", help="also where there is one")
    session_option(index, "all", every=True)

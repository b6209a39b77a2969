# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak diff``: where two sessions of a volume differ. Needs no key: chunks that differ have
different ids.
"""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import given, key_option, volume_argument
from backup_vm.terminal.text import size_text, table

if TYPE_CHECKING:
    from backup_vm.archive.image import Image


def add_to(commands: Any) -> None:
    """Declare the command."""
    diff = commands.add_parser(
        "diff",
        help="show which ranges of a volume differ between two sessions, and how much",
        description="Shows where two sessions of a volume differ, in whole chunks. Needs no key.",
    )
    volume_argument(diff, "whose sessions to compare")
    diff.add_argument(
        "old",
        type=given,
        metavar="S1",
        help="a session: its time, the beginning of it, a tag, or 'latest'",
    )
    diff.add_argument("new", type=given, metavar="S2", help="another session of the volume")
    key_option(diff)
    diff.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    context = Context(options)
    with context.contents() as contents:
        volume = contents.one(options.volume)
        old, new = (contents.find(volume, name) for name in (options.old, options.new))
        images = [contents.image(volume, session) for session in (old, new)]
        size = max(old.clear.size, new.clear.size)
        ranges = [(start, min(end, size)) for start, end in changed_ranges(*images)]
    total = sum(end - start for start, end in ranges)
    data = {
        "qube": volume.qube,
        "volume": volume.volume,
        "old": {"session": old.name, "size": old.clear.size},
        "new": {"session": new.name, "size": new.clear.size},
        "changed": total,
        "ranges": [{"offset": start, "length": end - start} for start, end in ranges],
    }
    rows = [
        ["OFFSET", "LENGTH", ""],
        *([str(start), str(end - start), size_text(end - start)] for start, end in ranges),
    ]
    resized = (
        ""
        if old.clear.size == new.clear.size
        else f"; {size_text(old.clear.size)} became {size_text(new.clear.size)}"
    )
    summary = (
        f"{volume.name} from {old.name} to {new.name}: {size_text(total)} in {len(ranges)} ranges"
        f" differ{resized}."
    )
    context.result(
        data, "\n".join([*([table(rows, frozenset({0, 1}))] if ranges else []), summary])
    )
    return 0


def changed_ranges(old: "Image", new: "Image") -> Iterator[tuple[int, int]]:
    """Ranges of bytes, in whole chunks, whose contents differ; what one of the two lacks counts if
    the other has data there.
    """
    from backup_vm.archive.image import WINDOW, runs

    chunk_size = new.session.clear.chunk_size
    firsts = range(0, max(old.chunks, new.chunks), WINDOW)
    differ = (
        (at, (old.ids(at, at + WINDOW) != new.ids(at, at + WINDOW)).any(axis=1)) for at in firsts
    )
    for first, end in runs(differ):
        yield first * chunk_size, end * chunk_size

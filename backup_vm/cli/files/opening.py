# SPDX-License-Identifier: GPL-2.0-or-later
"""What the actions of ``sparsebak files`` begin with: a volume or a session of it, opened, and a
place for what cannot be read.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backup_vm.cli.context import Context

if TYPE_CHECKING:
    from backup_vm.files.changes import Side
    from backup_vm.jobs.files import VolumeFiles
    from backup_vm.volumes import Named


class Troubles:
    """What could not be read is told, and remembered for the exit code."""

    def __init__(self, context: Context) -> None:
        self._context, self.count = context, 0

    def __call__(self, where: bytes, text: str) -> None:
        """One more, of the file at ``where``."""
        from backup_vm.files.session import shown

        self.count += 1
        self._context.warn(f"{shown(where)}: {text}")

    def code(self, *sides: "Side") -> int:
        """The exit code, after these sessions were read."""
        from backup_vm.errors import Exit

        if any(side.files.damaged for side in sides):
            return Exit.DAMAGED
        return Exit.FAILED if self.count else Exit.OK


@contextmanager
def opened_volume(context: Context) -> "Iterator[tuple[Named, VolumeFiles]]":
    """The volume that the command names, and its files."""
    from backup_vm.jobs.files import VolumeFiles

    with context.contents(needs_key=True) as contents:
        volume = contents.one(context.options.volume)
        with VolumeFiles(contents, volume, context.options.partition) as files:
            yield volume, files


def told(context: Context, side: "Side") -> "Side":
    """The same, after what must be known of it is said."""
    for note in side.files.notes:
        context.warn(f"{side.files.name}: {note}")
    return side


@contextmanager
def opened_session(context: Context) -> "Iterator[Side]":
    """The files of the session that the command names, of such a volume."""
    from backup_vm.volumes import find_session

    with opened_volume(context) as (volume, files):
        yield told(context, files.open(find_session(volume, context.options.session)))


def path_of(context: Context) -> bytes:
    """The path in the file system that the command names."""
    return os.fsencode(context.options.path)

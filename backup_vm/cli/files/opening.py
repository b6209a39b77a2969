# SPDX-License-Identifier: GPL-2.0-or-later
"""What the actions of ``sparsebak files`` begin with: a volume or a session of it, opened, and a
place for what cannot be read.
"""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING

from backup_vm.cli.context import Context

if TYPE_CHECKING:
    from backup_vm.files.changes import Side
    from backup_vm.files.session import SessionFiles
    from backup_vm.jobs.files import VolumeFiles
    from backup_vm.volumes import Named


class Troubles:
    """What could not be read is reported, and remembered for the exit code."""

    def __init__(self, context: Context) -> None:
        self._context, self.count = context, 0

    def __call__(self, where: bytes, text: str) -> None:
        """One more, of the file at ``where``."""
        from backup_vm.files.session import shown

        self.count += 1
        self._context.warn(f"{shown(where)}: {text}")

    def code(self, *sessions: "SessionFiles") -> int:
        """The exit code, after these sessions were read."""
        from backup_vm.errors import Exit

        if any(files.damaged for files in sessions):
            return Exit.DAMAGED
        return Exit.FAILED if self.count else Exit.OK


@contextmanager
def opened_volume(context: Context) -> "Iterator[tuple[Named, VolumeFiles]]":
    """The volume that the command names, and its files."""
    from backup_vm.errors import UsageError
    from backup_vm.files.parser import Parser

    if context.options.source is not None:
        raise UsageError("what is between sessions is read from an archive", "leave out --from")
    # Half a second goes to deriving the key of a passphrase, without the interpreter's lock: what
    # takes longest of the rest is done meanwhile.
    Thread(target=import_module, args=["numpy"]).start()
    with Parser() as parser:
        parser.begin()
        from backup_vm.jobs.files import VolumeFiles

        with context.contents(needs_key=True) as contents:
            volume = contents.one(context.options.volume)
            with VolumeFiles(contents, volume, context.options.partition, parser) as files:
                yield volume, files


def told(context: Context, side: "Side") -> "Side":
    """One session's files, after what must be known of them is said."""
    _tell_notes(context, side.files)
    return side


def _tell_notes(context: Context, files: "SessionFiles") -> None:
    for note in files.notes:
        context.warn(f"{files.name}: {note}")


@contextmanager
def opened_session(context: Context) -> "Iterator[SessionFiles]":
    """The files of the session that the command names, of such a volume; with --from of a grant."""
    if context.options.source is not None:
        with _from_backup_vm(context) as found:
            _tell_notes(context, found)
            yield found
        return
    with opened_volume(context) as (volume, files):
        session = files.find(context.options.session)
        for line in files.spoilt(session):
            context.warn(line)
        yield told(context, files.open(session)).files


@contextmanager
def _from_backup_vm(context: Context) -> "Iterator[SessionFiles]":
    from backup_vm.files.parser import Parser
    from backup_vm.files.session import SessionFiles
    from backup_vm.jobs.granted import granted
    from backup_vm.jobs.lazy_image import ChunkCache

    options = context.options
    there = granted(options.source, options.grant, options.volume)
    record = there.one(options.session, "files are")
    with Parser() as parser, closing(there.image(record, ChunkCache())) as image:
        title = f"{record.name} at {there.title(record)}"
        yield SessionFiles(parser, image, title, options.partition)


def path_of(context: Context) -> bytes:
    """The path in the file system that the command names."""
    return os.fsencode(context.options.path)

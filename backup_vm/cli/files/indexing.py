# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak files index``: keep the names in sessions, sealed, beside them."""

import argparse
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.files.opening import Troubles
from backup_vm.terminal.text import count_text, size_text

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.sessions import Session
    from backup_vm.files.names_maker import Made
    from backup_vm.jobs.files import VolumeFiles
    from backup_vm.jobs.indexing import Names
    from backup_vm.volumes import Contents, Named

_AT_ONCE = 8
"""Sessions whose names are read before the archive is written to. Reading keeps no reader away, and
takes seconds for each session; writing is a moment."""


def index(options: argparse.Namespace) -> int:
    """Make the indexes of names that there are none of."""
    from backup_vm.errors import Exit, UsageError
    from backup_vm.volumes import Contents, stored_volumes

    context = Context(options)
    if options.source is not None:
        raise UsageError("an index is stored in an archive", "leave out --from")
    if options.volume is None and options.session != "all":
        raise UsageError("--session needs a volume", "name one: QUBE/VOLUME")
    run = _Run(context)
    with context.contents(needs_key=True) as contents:
        keys, volumes = contents.keys, contents.select(options.volume)
    for volume in volumes:
        while True:
            with context.open() as archive:
                contents = Contents(archive, keys, stored_volumes(archive, keys, {}))
                now = next((one for one in contents.volumes if one.id == volume.id), None)
                if now is None:
                    run.gone(contents, volume)
                    break
                made = run.read(contents, now)
            if not made:
                break
            with context.open(writing=True) as archive:
                run.store(archive, made)
    size = size_text(run.size)
    context.done(
        {"indexed": run.rows, "size": run.size, "failed": run.failed},
        f"{count_text(len(run.rows), 'session')} indexed, {size}.",
    )
    if run.damaged:
        return Exit.DAMAGED
    return Exit.FAILED if run.failed or run.troubles.count else Exit.OK


class _Run:
    """One run of the command."""

    def __init__(self, context: Context) -> None:
        self._context, self.troubles = context, Troubles(context)
        self.rows: list[dict[str, Any]] = []
        self.size = self.failed = 0
        self.damaged = False
        self._tried: set[str] = set()
        self._twice: set[str] = set()
        self._told: set[str] = set()
        self._read: set[bytes] = set()
        """Segments that were read, and are whole."""

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._context.warn(text)

    def read(self, contents: "Contents", volume: "Named") -> "list[tuple[Session, Made]]":
        """Make the next few of a volume, of sessions that have none that can be used, the oldest
        first.
        """
        from backup_vm.files.parser import Parser
        from backup_vm.jobs.files import VolumeFiles

        options = self._context.options
        chosen = list(volume.sessions)
        if options.session != "all":
            chosen = [contents.find(volume, options.session)]
        made: list[tuple[Session, Made]] = []
        parser = Parser()
        with parser, VolumeFiles(contents, volume, options.partition, parser) as files:
            names = files.names(self._warn)
            names.read = self._read
            before = None
            for session in volume.sessions:
                due = session in chosen and session.file not in self._tried
                if due and (options.again or not names.whole(session)):
                    self._tried.add(session.file)
                    one = self._make(files, names, session, before)
                    if one is not None:
                        names.add(one)
                        made.append((session, one))
                    if len(made) == _AT_ONCE:
                        break
                if names.whole(session):
                    before = session
        return made

    def gone(self, contents: "Contents", volume: "Named") -> None:
        """Report that no session of a volume is there any more that can be read: the others are
        indexed all the same.
        """
        unread = contents.unread(volume)
        for line in unread:
            self._warn(line)
        if unread:
            self.failed, self.damaged = self.failed + len(unread), True
        else:
            self._warn(f"{volume.name} was removed meanwhile")

    def _make(
        self, files: "VolumeFiles", names: "Names", session: "Session", before: "Session | None"
    ) -> "Made | None":
        """The index of a session; None where there can be none, which is reported."""
        from backup_vm.errors import DamagedError, RemovedError, SparsebakError
        from backup_vm.files.answers import NoFileSystemError

        try:
            with closing(files.open(session).files) as read:
                return names.make(session, read, before, self._trouble(session))
        except RemovedError as error:
            self._context.warn(str(error))
        except SparsebakError as error:
            # volumes of settings have none: no failure where all are meant
            if self._context.options.volume is None and isinstance(error, NoFileSystemError):
                return None
            self.failed += 1
            self.damaged = self.damaged or isinstance(error, DamagedError)
            self._context.warn(str(error))
        return None

    def _trouble(self, session: "Session") -> Any:
        return lambda path, text: self.troubles(path, f"{session.name}: {text}")

    def store(self, archive: "Archive", made: "list[tuple[Session, Made]]") -> None:
        """Store what was made, unless what it is of was removed meanwhile."""
        from backup_vm.archive import name_index
        from backup_vm.archive.name_index import NO_SEGMENT
        from backup_vm.errors import DamagedError

        own, volume = archive.parameters.archive, made[0][0].volume
        if self._context.options.session != "all":  # else those that build on them are made, too
            name_index.hand_on(archive, volume, [session.file for session, _ in made])
        here = set(_last_segments(archive, volume))
        for session, one in made:
            with closing(one):
                base = one.head.base
                if not archive.storage.exists(session.file):
                    self._context.warn(f"{session.name} was removed meanwhile")
                    continue
                if base not in (NO_SEGMENT, *here):
                    self._once_more(session)
                    continue
                name = name_index.of_session(session.file)
                try:
                    name_index.write(archive.storage, own, name, one.parts(), 1)
                except DamagedError as error:  # there is something else of that name
                    self.failed, self.damaged = self.failed + 1, True
                    self._context.warn(str(error))
                    continue
                here.add(one.head.id)
                size = archive.storage.size(name)
                self.size += size
                row = {"session": session.name, "names": one.packer.rows, "size": size}
                self.rows.append({**row, "full": base == NO_SEGMENT, "troubles": one.troubles})

    def _once_more(self, session: "Session") -> None:
        """What its index builds on was removed meanwhile: it is made of what there is now."""
        if session.file in self._twice:
            self.failed += 1
            text = f"{session.name}: what its index of names builds on is removed again and again"
            self._context.warn(text)
            return
        self._tried.discard(session.file)
        self._twice.add(session.file)


def _last_segments(archive: "Archive", volume: str) -> Iterator[bytes]:
    from backup_vm.archive.name_index import NameFile, load_all

    for one in load_all(archive.storage, volume, archive.parameters.archive):
        if isinstance(one, NameFile):
            yield one.id

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a reader sees of an archive that others may write to meanwhile.

In a folder flock keeps readers and writers from each other. At a URL, and where two machines have
mounted one folder, it does not: another machine may merge and remove sessions, and move chunks to
other packs, while this one reads. What a session is never changes, only the files that say so. So
what a reader finds wrong counts only while the archive is what it was when the reader looked at it.
Otherwise the reader looks again, and reads on by what there is now.

A session that is gone then was removed, which is no damage, unless another one still builds on it:
whoever removes a session first stores its successor as one that does not need it.
"""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from backup_vm.archive import reconcile, sessions
from backup_vm.archive.listing import Listing
from backup_vm.archive.naming import volume_of
from backup_vm.errors import DamagedError, LockedError, RemovedError

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.catalog import ChunkCatalog
    from backup_vm.archive.sessions import Session

LOOKS = 4
"""How often something is read, at most, while another machine changes the archive each time."""
Result = TypeVar("Result")


class Looking:
    """What a reader has seen, and looking again. Safe to share between threads."""

    def __init__(self, archive: "Archive") -> None:
        self._archive = archive
        self.count = 0
        """How often the archive was looked at again, because another machine had changed it."""
        self._seen: dict[str, Session | None] = {}
        """Session files that were read since, None where one could not be."""
        self._listed: Listing | None = None
        """What there was when the catalog was opened."""
        self._series: dict[str, list[Session]] = {}
        self._said: list[str] = []
        self._aside = self._amid = False
        self._lock = threading.RLock()

    def saw(self, name: str, session: "Session | None") -> None:
        """Remember a session file as it was read."""
        if not self._archive.writing:
            self._seen[name] = session

    def steady(
        self,
        read: Callable[[], Result],
        wrong: Callable[[Result], Collection[str]] = lambda _: (),
    ) -> Result:
        """What ``read`` returns, which is called again where it found something wrong in an archive
        that another machine has changed.

        It must begin with what there is now: see ``series``. Wrong is a DamagedError, what it adds
        to the archive's ``damaged``, and what ``wrong`` says of its result. The same twice is
        damage, whatever else changes. Raises LockedError when it is something else each time.
        """
        archive, before = self._archive, frozenset[str]()
        for _ in range(LOOKS):
            count, known = self.count, archive.damaged.keys() | ()
            try:
                result = read()
            except DamagedError as error:
                said = frozenset([str(error)])
                if said == before or not self.again(count):
                    raise
            else:
                said = frozenset([*wrong(result), *(archive.damaged.keys() - known)])
                if not said or said == before or not self.again(count):
                    return result
            before = said
            for name in archive.damaged.keys() - known:  # noted by what began before that look
                del archive.damaged[name]
        raise LockedError(
            f"{archive.storage.describe()} is in use by another run, which changed it again and"
            " again while it was read",
            "let that run end, then try again",
        )

    def again(self, since: int | None = None) -> bool:
        """Look again, if another machine has changed what was seen; whether it has.

        With ``since``, a former count, also when that was found meanwhile.
        """
        if self._archive.writing:
            return False
        with self._lock:
            if since is not None and since != self.count:
                return True
            if self._amid or not self._changed():
                return False
            self._start_over()
            if self._archive.forget_findings():
                self._archive.replace_catalog(self.catalog(self._aside))
            return True

    def _start_over(self) -> None:
        self.count += 1
        self._seen, self._series, self._listed = {}, {}, None
        for line in self._said:
            self._archive.warnings.remove(line)
        self._said = []

    def _changed(self) -> bool:
        """Whether packs are others, or a session that was read is gone or another file. Sessions
        that were added matter only when they were read: the catalog may lack their chunks, also of
        packs that it knows, from which it takes only what some session listed then.
        """
        storage = self._archive.storage
        storage.refresh()
        if self._listed is not None and (
            Listing.of(storage).packs != self._listed.packs
            or any(name not in self._listed.files for name in self._seen)
        ):
            return True
        sizes = storage.sizes("volumes")
        if any(one is not None and sizes.get(n) != one.file_size for n, one in self._seen.items()):
            return True
        if not all(map(storage.exists, self._archive.damaged)):
            return True
        # not to be seen from sizes: one that could not be read, and one that was stored again
        # because what it built on was to be removed
        here = {one.clear.session for one in self._seen.values() if one is not None}
        return any(
            self._read(name) != one
            for name, one in self._seen.items()
            if one is None or not (one.full or one.base in here)
        )

    def _read(self, name: str) -> "Session | None":
        try:
            return sessions.load(self._archive.storage, name)
        except (DamagedError, OSError):
            return None

    def catalog(self, aside: bool = False) -> "ChunkCatalog":
        """Open the catalog; where something is wrong with what it is made for, and another machine
        has changed that meanwhile, again. ``aside``: see reconcile.open_catalog.
        """
        archive, self._aside = self._archive, aside
        with self._lock:
            for left in reversed(range(LOOKS)):
                warned, now = len(archive.warnings), Listing.of(archive.storage)
                self._listed, self._amid = now, True
                try:
                    catalog = reconcile.open_catalog(archive, now, aside)
                finally:
                    self._amid = False
                self._said = archive.warnings[warned:]
                wrong = self._said or archive.damaged or archive.found
                if archive.writing or not left or not wrong or not self._changed():
                    break
                self._start_over()
                archive.forget_findings()
                catalog.close()
        return catalog

    def catalog_knows(self, session: "Session") -> bool:
        """Whether a session was there when the catalog was opened, which so has its chunks."""
        return self._listed is not None and session.file in self._listed.files

    def series(self, series: "list[Session]", session: "Session") -> "list[Session]":
        """The sessions of a volume, one of which is ``session``: those given, or what there is now
        if the archive was looked at again.

        Raises RemovedError or DamagedError if that one is gone.
        """
        if not self.count:
            return series
        with self._lock:
            volume = session.volume
            found = self._series.get(volume)
            if found is None:
                found = self._archive.sessions(volume).get(volume, [])
                self._series[volume] = found
        if any(one.file == session.file for one in found):
            return found
        if session.file in self._archive.damaged:
            raise self._archive.damaged[session.file]
        with self.present(session):
            raise DamagedError(
                f"{self._archive.storage.describe(session.file)} is missing",
                "put it back from a copy of the archive; the next backup compares everything again",
            )

    @contextmanager
    def present(self, session: "Session") -> Iterator[None]:
        """Damage that is found while a session is read is none, but RemovedError, when another
        machine has removed that session.
        """
        try:
            yield
        except DamagedError:
            if not self.removed(session):
                raise
        else:
            return
        raise RemovedError(session.name)

    def removed(self, session: "Session") -> bool:
        """Whether another machine has removed a session: it is gone, and not lost. Looks again."""
        archive = self._archive
        if archive.writing or self._amid:
            return False
        self.again()
        if archive.storage.exists(session.file):
            return False
        volume = volume_of(session.file)
        if any(
            one.base == session.clear.session for one in archive.sessions(volume).get(volume, ())
        ):
            return False
        if archive.storage.elsewhere:
            return True
        _ = archive.catalog  # in a local archive it knows of a newest session that got lost
        return session.file not in archive.lost

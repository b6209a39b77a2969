# SPDX-License-Identifier: GPL-2.0-or-later
"""Mending by parity. What a parity file says is never believed: a mended file takes a damaged one's
place only when it is whole by its own checksums, and has all that the damaged one is needed for.

A file is written beside the damaged one and renamed when it is on disk, so that a crash leaves the
one or the other.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import cast

from backup_vm.archive import derive, naming, packs, sessions
from backup_vm.archive.archive import Archive
from backup_vm.archive.format import NO_BASE
from backup_vm.archive.pack_check import check
from backup_vm.archive.packs import Packed
from backup_vm.archive.parity import code
from backup_vm.archive.parity.blocks import Blocks
from backup_vm.archive.parity.making import plans
from backup_vm.archive.parity.mended import Mended, View, recovered
from backup_vm.archive.parity.plan import Member, Plan, read
from backup_vm.archive.storage import Storage
from backup_vm.errors import DamagedError, SparsebakError
from wire.chunks import ID_SIZE


class Parity:
    """The parity files of an archive: what they cover, and whether that and they are as they were.

    ``stale``: files, parity files among them, that were found to have changed. ``foreign``: parity
    files that are none of this archive, or of which neither copy of the plan is left.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._covering: defaultdict[str, list[str]] = defaultdict(list)
        self._last: Plan | None = None
        self.stale: set[str] = set()
        self.foreign: list[str] = []
        self.files = 0
        for name, plan in plans(archive, archive.parity_files()):
            if plan is None:
                self.foreign.append(name)
                continue
            self.files += 1
            for member in plan.names:
                self._covering[member].append(name)

    @property
    def names(self) -> set[str]:
        """The files that are covered."""
        return set(self._covering)

    def of(self, name: str) -> Iterator[tuple[Plan, Member]]:
        """The plans that cover a file."""
        for parity in self._covering.get(name, ()):
            if self._last is None or self._last.name != parity:
                try:
                    self._last = read(
                        self._archive.storage, parity, self._archive.parameters.archive
                    )
                except DamagedError:  # it was readable before
                    self.stale.add(parity)
                    continue
            member = next((one for one in self._last.members if one.name == name), None)
            if member is None:  # another machine has put another one there
                self.stale.add(parity)
                continue
            yield self._last, member

    def compare(self, name: str) -> None:
        """Note whether a file that is there has changed since its parity was made: a hole has been
        punched, a session merged.
        """
        for plan, member in self.of(name):
            with Blocks(self._archive.storage, plan) as blocks:
                if not self._same(blocks, name, member):
                    self.stale.add(name)

    def _same(self, blocks: Blocks, name: str, member: Member) -> bool:
        try:
            same = self._archive.storage.size(name) == member.size
        except (DamagedError, OSError):  # a folder or a FIFO, say, which is reported as damage
            return False
        return same and not blocks.lost(member.first, member.end)

    def compare_own(self) -> list[str]:
        """Note, and return, which parity files are damaged themselves."""
        bad = []
        every = {parity for some in self._covering.values() for parity in some}
        for _, plan in plans(self._archive, sorted(every)):
            if plan is None:
                continue
            first = plan.shape.blocks
            with Blocks(self._archive.storage, plan) as blocks:
                if not plan.intact or blocks.lost(first, first + plan.shape.parity_blocks):
                    bad.append(plan.name)
        self.stale.update(bad)
        return bad


class Mender:
    """Mends files of an archive that is open for writing. ``done``: what was mended."""

    def __init__(self, archive: Archive, parity: Parity) -> None:
        code.require()
        self._archive, self._parity = archive, parity
        self._tried: set[str] = set()
        self._lacking: dict[str, tuple[str, str]] = {}
        """Sessions that could be mended, and the volume and id of what they build on, which is not
        there.
        """
        self._settled = 0
        self.done: list[str] = []

    def mend(self, name: str, wanted: Mapping[int, bytes] | None = None) -> bool:
        """Mend a damaged or missing file, if its parity can. Raises SparsebakError where
        it cannot be written.

        ``wanted``: chunks of a pack that it must have for it to be worth it, offsets and ids.
        """
        if name in self._tried:  # whoever writes a disk can let two sessions build on each other
            return False
        self._tried.add(name)
        for plan, member in self._parity.of(name):
            with Blocks(self._archive.storage, plan) as blocks:
                found = recovered(plan, blocks, member)
                if found is None:
                    continue
                mended = Mended(blocks, plan, member, found)
                if self._fit(name, mended, member.size, wanted or {}):
                    try:
                        self._put(name, mended)
                    except DamagedError:  # of a disk that gives a block at times only
                        continue
                    self._archive.damaged.pop(name, None)
                    self.done.append(name)
                    return True
        return False

    def mend_with_bases(self, name: str) -> None:
        """Mend a session, and those that it builds on, if they are missing, too."""
        if name in self._tried:
            return
        waiting = [name]
        while waiting:  # not by recursion: there may be thousands, one on the other
            one = waiting[-1]
            self._tried.discard(one)
            if self.mend(one):
                waiting.pop()
                continue
            base = self._lacking.pop(one, None)
            called = self._called({base}) if base is not None else []
            below = next((n for n in called if n not in self._tried), None)
            if below is None:
                waiting.pop()
            else:
                waiting.append(below)

    def _fit(self, name: str, mended: Mended, size: int, wanted: Mapping[int, bytes]) -> bool:
        """Whether a mended file is whole, and nothing is lost by taking it."""
        archive = self._archive
        view = cast(Storage, View(archive.storage, mended, size))
        try:
            if naming.is_pack(name):
                numbers = {pack: number for number, pack in archive.catalog.packs().items()}
                live = archive.catalog.in_pack(numbers[name]) if name in numbers else {}
                return check(view, name, archive.parameters, {**live, **wanted}).sound
            session = sessions.load(view, name)
            sessions.check(view, session)
        except (DamagedError, OSError):
            return False
        # A prune gives a session another base, under the same name: parity from before it would
        # bring back one that builds on what is gone.
        volume, base = naming.volume_of(name), session.base.hex()
        if session.full or base in map(naming.session_of, archive.session_files(volume)):
            return True
        self._lacking[name] = volume, base
        return False

    def _put(self, name: str, mended: Mended) -> None:
        try:
            new = self._archive.storage.create(name)
            try:
                for part in mended.whole():
                    new.write(part)
                new.finish()
            except BaseException:
                new.abandon()
                raise
        except OSError as error:
            place = self._archive.storage.describe(name)
            raise SparsebakError(
                f"{place} could be mended, and cannot be written: {error.strerror or error}",
                "make room on the disk, then scrub again with --repair",
            ) from None

    def _called(self, wanted: set[tuple[str, str]]) -> list[str]:
        """Sessions that parity covers, by volume and id; the newest first."""
        known = naming.sessions_in(self._parity.names)
        return [n for n in known[::-1] if (naming.volume_of(n), naming.session_of(n)) in wanted]

    def sessions(self) -> None:
        """Mend sessions that are damaged, and those that are missing, as far as it is known that no
        prune removed them: others build on them, or they were the newest at the last run.

        Before all else: the catalog is looked at by what sessions say.
        """
        left = []
        for name in self._archive.session_files():
            try:
                sessions.check(self._archive.storage, sessions.load(self._archive.storage, name))
            except (DamagedError, OSError):
                if not self.mend(name):
                    left.append(name)
        # Damaged, and no parity has it with a base that is there: that base may be lost, too, and
        # nobody else names it.
        self._tried.difference_update(left)
        for name in (*left, *self._archive.lost, *self._called(_missing_bases(self._archive))):
            self.mend_with_bases(name)

    def unlisted_packs(self) -> None:
        """Mend packs whose index cannot be read, for it is what the catalog is compared with."""
        for name in self._archive.pack_files():
            try:
                packs.read_index(self._archive.storage, name, self._archive.parameters.archive)
            except (DamagedError, OSError):
                with suppress(sqlite3.DatabaseError):
                    if self.mend(name):
                        continue
                # A wrong catalog may have had the last word: it is asked again when it is right.
                self._tried.discard(name)

    def needed_packs(self) -> None:
        """Mend packs with chunks that sessions need and no pack has: packs that are missing, and
        those in which there is a hole now.
        """
        archive, catalog = self._archive, self._archive.catalog
        if not any(derive.lacking_in(archive, catalog, archive.session_files()).values()):
            return
        there = set(archive.pack_files())
        lacking: dict[str, list[Packed]] = {}
        for name in naming.packs_in(self._parity.names):
            if name not in there or name in self._parity.stale:
                entries = self._entries(name, name in there)
                lacking[name] = [entry for entry in entries if not catalog.has(entry.id)]
        for name, wanted in _needed(archive, lacking).items():
            self.mend(name, wanted)

    def _entries(self, name: str, there: bool) -> list[Packed]:
        """The index of a pack, by its parity if it is missing; nothing where it cannot be had."""
        identifier = self._archive.parameters.archive
        with suppress(DamagedError):
            if there:
                return packs.read_index(self._archive.storage, name, identifier)
            for plan, member in self._parity.of(name):
                with Blocks(self._archive.storage, plan) as blocks:
                    found = recovered(plan, blocks, member)
                    if found is not None:
                        mended = Mended(blocks, plan, member, found)
                        view = cast(Storage, View(self._archive.storage, mended, member.size))
                        return packs.read_index(view, name, identifier)
        return []

    def settle(self) -> None:
        """Bring the catalog to what there is now, if anything was mended since."""
        if len(self.done) > self._settled:
            self._archive.mended(self.done)
            self._settled = len(self.done)


def _needed(archive: Archive, lacking: Mapping[str, list[Packed]]) -> dict[str, dict[int, bytes]]:
    """Of packs, by name, those entries that a session refers to: offsets and ids."""
    import numpy as np

    from backup_vm.archive.reclaim import referred_to
    from backup_vm.archive.references import positions, prefixes

    rows = [(name, entry.offset, entry.id) for name, some in lacking.items() for entry in some]
    if not rows:
        return {}
    ids = np.frombuffer(b"".join(one for *_, one in rows), np.uint8).reshape(-1, ID_SIZE)
    known = np.unique(prefixes(ids))
    try:
        live = referred_to(archive, known)
    except DamagedError:  # a session cannot be read: it may need any
        live = np.ones(len(known), np.bool_)
    found: defaultdict[str, dict[int, bytes]] = defaultdict(dict)
    for (name, offset, chunk_id), at in zip(rows, positions(known, ids).tolist(), strict=True):
        if live[at]:
            found[name][offset] = chunk_id
    return dict(found)


def _missing_bases(archive: Archive) -> set[tuple[str, str]]:
    """Volume and id of sessions that others build on and that have no file."""
    found = set()
    for volume, series in archive.sessions().items():
        there = set(map(naming.session_of, archive.session_files(volume)))
        for session in series:
            if session.base != NO_BASE and session.base.hex() not in there:
                found.add((volume, session.base.hex()))
    return found

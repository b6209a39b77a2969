# SPDX-License-Identifier: GPL-2.0-or-later
"""Object lock: what is stored cannot be removed by any key before its date.

A bucket with object lock keeps versions: whatever is deleted or overwritten stays below, as a
version, until it is removed for good, which its lock forbids until then. So nothing else in an
archive changes: files are removed as everywhere, and what is below is removed for good later, by
``remove_due``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from backup_vm import stopping
from backup_vm.archive.storage.bucket import Bucket, Version
from backup_vm.archive.storage.objects import Place
from backup_vm.errors import ForbiddenError, SparsebakError

Item = TypeVar("Item")
_THREADS = 5
_BATCH = 500
_LEASES, _UNFINISHED = "locks/", ".unfinished"
"""What is not locked, for it says something for a while only."""


@dataclass
class Left:
    """What is below an archive: ``removed`` bytes that were removed for good, ``waiting`` bytes
    that may not be, the last of them before ``until`` (Unix seconds), and what the key may not
    remove at all.
    """

    removed: int = 0
    waiting: int = 0
    until: int = 0
    refused: list[str] = field(default_factory=list)


class Vault:
    """The lock on an archive's objects. ``versions``: ids of the versions that this run stored, by
    name; ``retention``: seconds for which each is locked.
    """

    def __init__(self, url: str, place: Place, versions: dict[str, str], retention: int) -> None:
        self._bucket, self._place, self._versions = Bucket(url), place, versions
        self._url, self.retention = url, retention
        self.held: dict[str, int] = {}
        """Until when what this run stored is locked."""
        self._able: bool | None = None

    def able(self) -> bool:
        """Whether anything can be locked there; a key that may not ask may lock all the same."""
        # Asked before the first lock: a store that knows none may take one for new contents.
        if self._able is None:
            try:
                self._able = self._place.ask(self._bucket.locks)
            except ForbiddenError:
                self._able = True
        return self._able

    def require(self) -> None:
        """Raise SparsebakError where nothing can be locked, or nobody may know."""
        self._able = self._place.ask(self._bucket.locks)
        if not self._able:
            raise SparsebakError(
                f"{self._url} cannot keep anything for a time: its bucket has no object lock",
                "make a bucket with object lock, without a retention of its own, and name that;"
                " or leave --retention out",
            )

    def now(self) -> float:
        """The store's time."""
        return self._place.ask(self._bucket.now)

    def stored(self, name: str) -> None:
        """Lock what was just stored under a name, before anything relies on it."""
        version = self._versions.pop(name, "")
        lasts = not name.startswith(_LEASES) and not name.endswith(_UNFINISHED)
        if lasts and self.able():
            self.held[name] = self._hold(name, version, int(self.now()) + self.retention)

    def _hold(self, name: str, version: str, until: int) -> int:
        try:
            return self._place.ask(lambda: self._bucket.retain(name, until, version))
        except ForbiddenError as error:
            allow = "the key must be allowed s3:PutObjectRetention"
            other = error.hint if "AccessDenied" not in str(error) else ""
            raise ForbiddenError(f"{name} could not be locked: {error}", other or allow) from None

    def hold(self, names: Iterable[str]) -> Iterator[dict[str, int]]:
        """Lock these objects as they are now for the whole retention; yields until when, some at a
        time. Those that are gone are left out.
        """
        until = int(self.now()) + self.retention
        waiting = list(names)
        for start in range(0, len(waiting), _BATCH):
            stopping.check()
            batch = waiting[start : start + _BATCH]
            found = self._each(lambda name: self._hold_there(name, until), batch)
            yield {name: at for name, at in zip(batch, found, strict=True) if at}

    def _hold_there(self, name: str, until: int) -> int:
        try:
            return self._hold(name, "", until)
        except FileNotFoundError:
            return 0

    def _each(self, work: Callable[[Item], int], items: list[Item]) -> list[int]:
        with ThreadPoolExecutor(min(_THREADS, len(items) or 1)) as pool:
            asked = [pool.submit(work, one) for one in items]
            try:
                return [one.result() for one in asked]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def remove_due(self, ours: Callable[[str], bool]) -> Left:
        """Remove for good what was replaced or removed longer ago than the retention. ``ours``:
        whether a name is the archive's.

        Longer ago, and not only as soon as its lock has run out: what somebody with our key put in
        its place may be what this run believes, and there must be that much time to notice.
        """
        now, left = self.now(), Left()
        due, markers = list[Version](), list[Version]()
        for name, versions in self._place.ask(self._below).items():
            if not ours(name):
                continue
            mine = _due(versions, now - self.retention, self.retention, left)
            due += mine
            if versions[0].marker and len(mine) == len(versions) - 1:
                markers.append(versions[0])
        # A marker goes when nothing is below it any more: what it hides would be there again, and a
        # lock that somebody else has set, or the bucket, may end later than ours.
        stay = self._remove_all(due, left)
        self._remove_all([one for one in markers if one.name not in stay], left)
        return left

    def _remove_all(self, versions: list[Version], left: Left) -> set[str]:
        """Remove versions; returns names of those that stay."""
        stay = set[str]()
        for start in range(0, len(versions), _BATCH):
            stopping.check()
            batch = versions[start : start + _BATCH]
            untils = self._each(lambda version: self._remove(version, left), batch)
            for version, until in zip(batch, untils, strict=True):
                if until == 0:
                    left.removed += version.size
                    continue
                stay.add(version.name)
                if until > 0:
                    left.waiting += version.size
                    left.until = max(left.until, until)
        return stay

    def _below(self) -> dict[str, list[Version]]:
        """Versions by name, newest first, of names that have more than one, or a marker. Most have
        one, and are not kept in memory: a store lists those of one name together.
        """
        found: defaultdict[str, list[Version]] = defaultdict(list)
        last: Version | None = None
        for one in self._bucket.versions():
            if one.latest and not one.marker:
                last = one
                continue
            if last is not None and last.name == one.name:
                found[one.name].append(last)
                last = None
            found[one.name].append(one)
        for versions in found.values():
            # What is there comes first, whatever its time: Ceph moves that when it locks again.
            versions.sort(key=lambda one: (not one.latest, -one.time))
        return found

    def _remove(self, version: Version, left: Left) -> int:
        """Remove a version; returns 0, or until when it is locked, or -1 where it must stay."""
        try:
            self._place.ask(lambda: self._bucket.remove(version.name, version.id))
            return 0
        except ForbiddenError as error:
            until = self._place.ask(lambda: self._bucket.retained(version.name, version.id))
            if not until:
                left.refused.append(str(error))
            return until or -1


def _due(versions: list[Version], before: float, retention: int, left: Left) -> list[Version]:
    """Of the versions of one name, newest first, those that were replaced ``before`` (oldest
    first); what is not due counts as waiting.
    """
    due: list[Version] = []
    for newer, one in zip(versions, versions[1:], strict=False):
        if newer.time < before:
            due.insert(0, one)
        elif not one.marker:
            left.waiting += one.size
            left.until = max(left.until, int(newer.time) + retention)
    return due

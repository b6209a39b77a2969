# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive in a bucket that keeps versions, as it was at a moment: the way back when somebody
with the key has overwritten or deleted what is there. It can only be read.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from backup_vm.archive.lease_files import Locks
from backup_vm.archive.storage.bucket import Bucket, Version
from backup_vm.archive.storage.interface import NewFile
from backup_vm.archive.storage.objects import Entry, Place
from backup_vm.archive.storage.remote import RemoteStorage
from backup_vm.archive.storage.s3 import STORED, Listed, ObjectStore
from backup_vm.errors import ForbiddenError, SparsebakError
from common.override import override

_THREADS = 5
_FORMS = ("%Y-%m-%d", "%Y%m%d-%H%M%S")


def parse_moment(text: str) -> float:
    """Unix seconds of ``2026-11-20T08:30``, ``2026-11-20`` (its beginning) or a session's name, in
    UTC where no zone is given; raise ValueError.
    """
    found = None
    for parse in (datetime.fromisoformat, *map(_strptime, _FORMS)):
        with suppress(ValueError):
            found = parse(text)
            break
    if found is None:
        raise ValueError(f"{text!r} is not a moment such as 2026-11-20T08:30 (in UTC)")
    return found.replace(tzinfo=found.tzinfo or UTC).timestamp()


def _strptime(form: str) -> Callable[[str], datetime]:
    return lambda text: datetime.strptime(text, form)  # noqa: DTZ007 (the zone is put in above)


class PastStore(ObjectStore):
    """Of each object the newest version that there was at a moment, by the store's clock."""

    pages = False  # a listing alone tells which version is meant

    def __init__(self, url: str, moment: float) -> None:
        super().__init__(url)
        self._bucket, self._moment, self._place = Bucket(url), moment, Place(url)
        self._then: dict[str, str] = {}
        """Ids of these versions by name."""

    @override
    def list(self) -> Listed:
        newest, oldest = dict[str, Version](), dict[str, Version]()
        for one in self._bucket.versions():
            if one.time > self._moment:
                if not one.marker:
                    oldest[one.name] = one
            # Of two of one moment the store lists the newer one first.
            elif one.name not in newest or one.time > newest[one.name].time:
                newest[one.name] = one
        later = {name: one for name, one in oldest.items() if name not in newest}
        there = {name: one for name, one in newest.items() if not one.marker}
        there |= self._moved(later)
        self._then = {name: one.id for name, one in there.items()}
        return [(name, Entry(one.size, one.tag)) for name, one in there.items()]

    def _moved(self, later: dict[str, Version]) -> dict[str, Version]:
        """Of the oldest versions of names that seem not to have been there those that say that they
        were.

        Ceph moves the time of a version when it is locked again. What says when it was stored can
        be written by anybody, but beneath the oldest version nobody can put another one.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            said = pool.map(self._stored, later.values())
            found = {
                name: at
                for (name, _), at in zip(later.items(), said, strict=True)
                if at is not None
            }
        return {name: later[name] for name, at in found.items() if at <= self._moment}

    def _stored(self, version: Version) -> int | None:
        options: Any = {"version": version.id, "head": True}

        async def ask() -> str:
            got = await self._obstore.get_async(self._store, version.name, options=options)
            return str(got.attributes.get(STORED, ""))

        try:
            text = self._place.ask(lambda: self._run(ask(), version.name))
        except (SparsebakError, FileNotFoundError):  # of whoever locked it away, say
            return None
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else None

    @override
    def _which(self, name: str) -> dict[str, Any]:
        if name not in self._then:
            raise FileNotFoundError(name)
        return {"version": self._then[name]}

    @override
    def get_small(self, name: str, limit: int) -> bytes:
        raise FileNotFoundError(name)  # what the store has now


class PastStorage(RemoteStorage):
    """The archive of such objects. ``url`` names the moment, too: it has a cache of its own."""

    def __init__(self, url: str, place: str, moment: float) -> None:
        super().__init__(url, PastStore(place, moment))

    @override
    def writable(self) -> bool:
        return False

    @override
    def locks(self) -> Locks:  # type: ignore[override]
        raise self._cannot()

    @override
    def create(self, name: str) -> NewFile:  # type: ignore[override]
        raise self._cannot()

    @override
    def remove(self, *names: str) -> None:
        raise self._cannot()

    def _cannot(self) -> ForbiddenError:
        return ForbiddenError(
            f"{self.describe()} is an archive as it was: it can only be read",
            "copy it to a new place: sparsebak copy",
        )

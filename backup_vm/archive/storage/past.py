# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive in a bucket that keeps versions, as it was at a moment: the way back when somebody
with the key has overwritten or deleted what is there. It can only be read.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from backup_vm.archive.lease_files import Locks
from backup_vm.archive.storage.bucket import Bucket, Version
from backup_vm.archive.storage.interface import NewFile
from backup_vm.archive.storage.objects import Entry
from backup_vm.archive.storage.remote import RemoteStorage
from backup_vm.archive.storage.s3 import Listed, ObjectStore
from backup_vm.errors import ForbiddenError
from common.override import override

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

    def __init__(self, url: str, moment: float) -> None:
        super().__init__(url)
        self._bucket, self._moment = Bucket(url), moment
        self._then: dict[str, str] = {}
        """Ids of these versions by name."""

    @override
    def list(self) -> Listed:
        newest: dict[str, Version] = {}
        for one in self._bucket.versions():
            # Of two of one moment the store lists the newer one first.
            if one.time <= self._moment and (
                one.name not in newest or one.time > newest[one.name].time
            ):
                newest[one.name] = one
        there = {name: one for name, one in newest.items() if not one.marker}
        self._then = {name: one.id for name, one in there.items()}
        return [(name, Entry(one.size, one.tag)) for name, one in there.items()]

    @override
    def _which(self, name: str) -> dict[str, Any]:
        return {"version": self._then[name]} if name in self._then else {}


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

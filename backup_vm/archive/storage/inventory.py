# SPDX-License-Identifier: GPL-2.0-or-later
"""What objects an archive elsewhere has: listed when that is first asked for, and kept right by
what this run changes.

Names and sizes in a listing are the store's word: what could not be a file here is left out.
"""

import threading

from backup_vm.archive.storage.objects import Changed, Entry, Objects, Place, can_be_a_name

_LARGEST = 1 << 50
"""Bytes: more than any store keeps as one object, and fewer than a database can count."""


def _possible(entry: Entry) -> bool:
    return 0 <= entry.size <= _LARGEST


class Inventory:
    """The objects of one archive. ``unreadable``: names in the last listing that are no object to
    be read.
    """

    def __init__(self, place: Place, objects: Objects) -> None:
        self.unreadable: list[str] = []
        self._place, self._objects = place, objects
        self._listing: dict[str, Entry] | None = None
        self._written: dict[str, Entry] = {}
        self._removed: dict[str, Entry] = {}
        """What this run did, for a store whose listings come late."""
        self._lock = threading.RLock()

    def there(self) -> dict[str, Entry]:
        """What there is, as listed once and as changed by us since."""
        with self._lock:
            if self._listing is None:
                self._listing = self._list()
            return self._listing

    @property
    def listed(self) -> bool:
        """Whether it is known what there is."""
        return self._listing is not None

    def _list(self) -> dict[str, Entry]:
        found = self._place.ask(lambda: dict(self._objects.list()))
        odd = [n for n, entry in found.items() if not can_be_a_name(n) or not _possible(entry)]
        self.unreadable = [*self._objects.unreadable, *odd]
        for name in odd:
            del found[name]
        return found

    def refresh(self) -> None:
        """List again: another machine may have added, moved and removed objects. What this run did
        is kept right.
        """
        listed = self._list()
        with self._lock:
            # A listing may be older than what this run did: some stores and their caches say so
            # for minutes.
            for name, entry in self._removed.items():
                if listed.get(name) == entry:
                    del listed[name]
            for name, entry in self._written.items():
                if name not in listed and self._is_there(name, entry):
                    listed[name] = entry
            self._listing = listed

    def _is_there(self, name: str, entry: Entry) -> bool:
        """Whether an object that a listing lacks can be read all the same."""
        if not entry.size:
            return False
        try:
            self._place.ask(lambda: self._objects.get_range(name, entry, 0, 1))
        except (FileNotFoundError, Changed):
            return False
        return True

    def wrote(self, name: str, entry: Entry) -> None:
        """Count with an object that this run has stored."""
        with self._lock:
            self.there()[name] = self._written[name] = entry

    def removed(self, name: str) -> None:
        """Leave out an object that this run has removed, if it was there."""
        with self._lock:
            self._written.pop(name, None)
            if (entry := self.there().pop(name, None)) is not None:
                self._removed[name] = entry

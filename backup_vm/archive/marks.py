# SPDX-License-Identifier: GPL-2.0-or-later
"""What the catalog remembers beside where chunks are: work that is due. Part of the cache, and lost
with it.

Nothing depends on a mark that is lost: a catalog that is made from packs and sessions finds by
itself what is due.

- ``compare`` (volumes): something that the volume's newest image needs is missing. Set by whoever
  finds that (opening, scrub); the next backup of the volume stores a full session, for which
  everything is compared, and ends it.
- ``storing``: a run is bringing chunks in, and died if it is still set when the next one opens the
  archive: chunks may be in the catalog that no session refers to. Opening drops them there, which
  makes ``unclaimed`` of it.
- ``unclaimed``: packs may hold chunks that neither a session needs nor the catalog lists. They are
  harmless, and the next prune, which alone gives space back, looks for them. Ended by a reclaim
  that saw every session.
- ``reclaiming``: a reclaim has begun and, if it is still set when the archive is opened, died. The
  next writer does it again.
- ``noted``: there was a ``notes.json``, which had been changed so many times when it was last
  looked into. Ended when a writer finds that it is gone, and says so: nothing else would tell that
  sessions had tags.

docs/architecture.md draws the moves between them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backup_vm.archive.catalog_base import CatalogBase

_COMPARE = "compare:"
_STORING, _UNCLAIMED, _RECLAIMING = "storing", "unclaimed", "reclaiming"
_NOTED = "noted"


class Marks:
    """See the module. Every change is durable with the catalog's transaction that is open, or at
    once.
    """

    def __init__(self, catalog: "CatalogBase") -> None:
        self._catalog = catalog

    def compare(self, volume: str) -> None:
        """The next session of this volume (id in hexadecimal) must be a full one."""
        self._catalog.set_meta(_COMPARE + volume, "1")

    def compared(self, volume: str) -> None:
        """A full session of this volume is stored."""
        self._catalog.set_meta(_COMPARE + volume, None)

    def must_compare(self, volume: str) -> bool:
        """Whether later sessions of this volume must not build on those there are."""
        return self._catalog.meta(_COMPARE + volume) is not None

    def to_compare(self) -> list[str]:
        """All such volumes."""
        return [key.removeprefix(_COMPARE) for key in self._catalog.meta_with(_COMPARE)]

    @property
    def storing(self) -> bool:
        """Whether chunks may be in the catalog that no session refers to."""
        return self._catalog.meta(_STORING) is not None

    @storing.setter
    def storing(self, value: bool) -> None:
        self._set(_STORING, value)

    @property
    def unclaimed(self) -> bool:
        """Whether packs may hold chunks that nothing needs and the catalog does not list."""
        return self._catalog.meta(_UNCLAIMED) is not None

    @unclaimed.setter
    def unclaimed(self, value: bool) -> None:
        self._set(_UNCLAIMED, value)

    @property
    def reclaiming(self) -> bool:
        """Whether a reclaim has begun and not ended."""
        return self._catalog.meta(_RECLAIMING) is not None

    @reclaiming.setter
    def reclaiming(self, value: bool) -> None:
        self._set(_RECLAIMING, value)

    @property
    def noted(self) -> bool:
        """Whether there was a file of notes when a writer last looked."""
        return self._catalog.meta(_NOTED) is not None

    @noted.setter
    def noted(self, value: bool) -> None:
        self._set(_NOTED, value)

    @property
    def noted_changes(self) -> int:
        """The highest count of changes of these notes that was seen; 0 where none was."""
        text = self._catalog.meta(_NOTED) or ""
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0

    @noted_changes.setter
    def noted_changes(self, value: int) -> None:
        if value != self.noted_changes:
            self._catalog.set_meta(_NOTED, str(value))

    def _set(self, key: str, value: bool) -> None:
        if value != (self._catalog.meta(key) is not None):
            self._catalog.set_meta(key, "1" if value else None)

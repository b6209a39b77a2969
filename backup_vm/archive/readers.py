# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of an archive that stay open while they are read here and there."""

from collections import OrderedDict
from types import TracebackType
from typing import Self

from backup_vm.archive.storage import Reader, Storage

_MOST = 64


class Readers:
    """The files that were read last, each as it was when it was opened. Not for several threads at
    once: one that is open may be closed for another.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._open: OrderedDict[str, Reader] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close them; they are opened again when they are needed."""
        while self._open:
            self._open.popitem()[1].close()

    def of(self, name: str) -> Reader:
        """A file, open; raise FileNotFoundError, DamagedError."""
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        reader = self._open[name] = self._storage.reader(name)
        if len(self._open) > _MOST:
            self._open.popitem(last=False)[1].close()
        return reader

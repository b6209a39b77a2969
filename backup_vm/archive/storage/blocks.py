# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading objects here and there, and ahead where they are read on and on."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from backup_vm.archive.storage import Reader
from backup_vm.archive.storage.objects import Entry
from common.override import override

_BLOCK = 2 << 20
_BLOCKS = 16


class Blocks:
    """Blocks of remote files, the ones used last, and of those that are read from start to end also
    the next one.
    """

    def __init__(self, fetch: Callable[[str, Entry, int, int], bytes]) -> None:
        self.exact = fetch
        self._blocks: OrderedDict[tuple[str, Entry, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, entry: Entry, index: int) -> bytes:
        """A block, with the next one on its way."""
        with self._lock:
            ahead = (name, entry, index) in self._blocks
        wanted = self._begin(name, entry, index)
        self._begin(name, entry, index + 1)
        try:
            return wanted.result()
        except Exception:
            if not ahead:
                raise
        # It was asked for before anybody wanted it: that it failed then says nothing of now.
        return self._begin(name, entry, index).result()

    def _begin(self, name: str, entry: Entry, index: int) -> "Future[bytes]":
        with self._lock:
            key = name, entry, index
            if key not in self._blocks:
                future: Future[bytes] = Future()
                # A thread that nobody waits for at the end: what is read ahead may never be wanted.
                # Started first: where there are no more threads, nobody is to wait for it.
                threading.Thread(target=self._fill, args=(future, *key), daemon=True).start()
                self._blocks[key] = future
                while len(self._blocks) > _BLOCKS:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(key)
            return self._blocks[key]

    def _fill(self, future: "Future[bytes]", name: str, entry: Entry, index: int) -> None:
        try:
            future.set_result(self.exact(name, entry, index * _BLOCK, _BLOCK))
        except BaseException as error:  # KeyboardInterrupt, too: for whoever waits
            with self._lock:  # a failure is not kept
                self._blocks.pop((name, entry, index), None)
            future.set_exception(error)


class RemoteReader(Reader):
    """A file elsewhere. What is read in order is fetched in blocks ahead; what is read here and
    there, exactly.
    """

    def __init__(self, blocks: Blocks, name: str, entry: Entry) -> None:
        self._blocks, self._name, self._entry = blocks, name, entry
        self._next = 0

    @override
    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._entry.size)
        # Of a pack in which every tenth chunk is wanted, reading it all would be ten times the
        # traffic: ahead only where the next read began less than a block after the last one.
        going_on = 0 <= offset - self._next < _BLOCK
        self._next = end
        if not going_on or length > _BLOCK:
            return self._blocks.exact(self._name, self._entry, offset, end - offset)
        parts = []
        while offset < end:
            index, within = divmod(offset, _BLOCK)
            part = self._blocks.get(self._name, self._entry, index)[within : within + end - offset]
            if not part:
                break
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    @override
    def close(self) -> None:
        """Nothing is open between two reads."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""The folders of an archive on an SFTP host: all that is in them, and those that are to be made."""

import os
import struct
from collections import deque
from collections.abc import Iterator

from backup_vm.archive.storage import sftp_protocol as protocol
from backup_vm.archive.storage.sftp_protocol import Attributes, Client, Refused, text
from backup_vm.errors import ForbiddenError, NoRoomError, SparsebakError

MOST = 20_000_000
"""Files in a listing beyond which it is taken for one without end."""
_DEPTH = 3
_KNOWN = ("locks", "packs", "parity", "volumes")
"""What an archive's folder has in it."""


class Folders:
    """Those below ``root``. Methods raise Refused, and what Client raises."""

    def __init__(self, host: str, root: bytes) -> None:
        self._host, self._root = host, root
        self._made: set[bytes] = set()
        """Folders that are there, unless another machine removed them."""

    def _path(self, name: str) -> bytes:
        return self._root + b"/" + name.encode(errors="surrogateescape") if name else self._root

    def forget(self) -> None:
        """One that was there is gone: believe in none."""
        self._made.clear()

    def files(self, client: Client) -> Iterator[tuple[str, Attributes]]:
        """All files, one level of folders after the other; links and whatever else is neither are
        left out.
        """
        # A level at a time, so that many folders are asked for at once: packs are in 256, and one
        # after the other each would cost a round trip. The second level is asked for with the
        # first, for its names are known; what comes of it counts only where the first has a folder
        # of that name.
        level, guessed, seen = [""], list(_KNOWN), 0
        while level:
            asked = level + guessed
            found: dict[str, list[tuple[bytes, Attributes]]] = {name: [] for name in asked}
            for at, entries in client.folders([self._path(name) for name in asked], MOST - seen):
                seen += len(entries)
                found[asked[at]] = entries
            known, level, guessed = deque(level), [], []
            while known:
                folder = known.popleft()
                for raw, attributes in found.pop(folder, ()):  # a server may name one twice
                    if raw in (b".", b"..") or b"/" in raw or not raw:
                        continue
                    name = f"{folder}/{raw.decode(errors='surrogateescape')}".lstrip("/")
                    is_folder = attributes.is_folder
                    if is_folder is None:  # names of files have a dot in them, folders' have none
                        is_folder = b"." not in raw
                    if is_folder and name.count("/") + 1 < _DEPTH:
                        self._made.add(self._path(name))
                        (known if name in found else level).append(name)
                    elif attributes.is_file is not False and not is_folder:
                        yield name, attributes

    def make(self, client: Client, folder: bytes) -> None:
        """Have a folder. One that a listing did not show is most likely not there."""
        if folder in self._made or folder in (b"", b"/", b"."):
            return
        if self._refusal(client, folder) is not None:
            self.make(client, folder.rpartition(b"/")[0])
            refusal = self._refusal(client, folder)
            if refusal is not None:
                raise self._no_folder(folder, refusal)
        self._made.add(folder)

    @staticmethod
    def _refusal(client: Client, folder: bytes) -> Refused | None:
        """Make a folder; what the server answered where there is none then."""
        try:
            client.ask(protocol.MKDIR, text(folder) + struct.pack(">I", 0))
        except Refused as refusal:  # or is it there?
            try:
                client.ask(protocol.STAT, text(folder), protocol.ATTRS)
            except Refused as error:
                if error.code != protocol.NO_SUCH_FILE:
                    raise
                return refusal
        return None

    def create(self, client: Client, path: bytes, flags: int) -> bytes:
        """A handle of a file to be written. Whether its folder is there need not be asked first."""
        folder = path.rpartition(b"/")[0]
        try:
            return client.open(path, flags)
        except Refused as error:
            unknown = error.code == protocol.FAILURE and folder not in self._made
            if error.code != protocol.NO_SUCH_FILE and not unknown:
                raise
        self._made.discard(folder)
        self.make(client, folder)
        return client.open(path, flags)

    def _no_folder(self, folder: bytes, refusal: Refused) -> SparsebakError:
        kind: type[SparsebakError] = SparsebakError
        hint = "name one in which this login may write"
        if refusal.code == protocol.PERMISSION_DENIED:
            kind = ForbiddenError
        elif refusal.code == protocol.FAILURE:  # all that SFTP has for a full disk
            kind, hint = NoRoomError, f"make room if its disk is full; if it is read-only, {hint}"
        return kind(f"{self._host} does not make the folder {os.fsdecode(folder)}: {refusal}", hint)

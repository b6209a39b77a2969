# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects as files on a host reached by SFTP: ``sftp://[USER@]HOST[:PORT]/PATH``, through OpenSSH's
``ssh``.

A path that begins with ``/~/`` is relative to the login folder. A file is uploaded as
NAME.uploading, made durable where the server can (fsync@openssh.com), and renamed. Where the server
cannot rename over a file (posix-rename@openssh.com), what is replaced is first removed; NAME.whole
is then, and only then, the whole new file, and is read as NAME until it has its name.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from backup_vm import stopping
from backup_vm.archive.storage import sftp_extensions as extensions
from backup_vm.archive.storage import sftp_protocol as protocol
from backup_vm.archive.storage.connections import Connections
from backup_vm.archive.storage.objects import Changed, Entry, Objects, Unreachable
from backup_vm.archive.storage.room import Room
from backup_vm.archive.storage.sftp_folders import MOST, Folders
from backup_vm.archive.storage.sftp_protocol import Attributes, Client, Refused, text
from backup_vm.archive.storage.ssh import Host
from backup_vm.errors import ForbiddenError, NoRoomError, SparsebakError, UsageError
from common.override import override

_UPLOADING, _WHOLE = ".uploading", ".whole"
_ROOM = 1 << 20
_TICK, _TRIES = 1.1, 4
"""Seconds between uploads of one file until its time is another one, and how many at most."""


def _version(attributes: Attributes) -> str:
    return "" if attributes.mtime is None else str(attributes.mtime)


class SftpHost(Objects):
    """A folder on a host that is reached by SFTP."""

    unreadable = ()
    """A folder has no names that cannot be read."""
    pages = True  # and a level of folders, some round trips

    def __init__(self, url: str) -> None:
        self._host = Host.of(url + "/")
        path = unquote(urlsplit(url).path)
        if not path.strip("/") or "\0" in path:
            raise UsageError(f"{url}: write sftp://USER@HOST:PORT/PATH, with a path")
        self._root = (path.removeprefix("/~/") if path.startswith("/~/") else path).encode()
        self._connections = Connections(self._host)
        self._folders = Folders(self._host.name, self._root)
        self._elsewhere: frozenset[str] = frozenset()
        """Objects that are under NAME.whole only."""

    def _path(self, name: str) -> bytes:
        return self._root + b"/" + name.encode(errors="surrogateescape") if name else self._root

    @contextmanager
    def _asking(self, name: str = "") -> Iterator[Client]:
        """A connection, and the server's refusals as what they mean."""
        try:
            with self._connections.one() as client:
                yield client
        except Refused as error:
            raise self._meaning(error, name) from None

    def _meaning(self, error: Refused, name: str) -> Exception:
        what = f"{self._host.name} refuses {name}: {error}".replace(" :", ":")
        if error.code == protocol.NO_SUCH_FILE:
            return FileNotFoundError(f"{name}: {error}")
        if error.code == protocol.PERMISSION_DENIED:
            return ForbiddenError(what)
        if error.code in (protocol.NO_CONNECTION, protocol.CONNECTION_LOST):
            return Unreachable(str(error))
        return SparsebakError(what)

    @override
    def list(self) -> list[tuple[str, Entry]]:
        found: dict[str, Entry] = {}
        with self._asking() as client:
            for name, attributes in self._folders.files(client):
                found[name] = self._entry(client, name, attributes)
        # An upload that was cut between removing what it replaces and taking its name: see above.
        whole = {name.removesuffix(_WHOLE) for name in found if name.endswith(_WHOLE)}
        self._elsewhere = frozenset(name for name in whole if name not in found)
        for name in self._elsewhere:
            found[name] = found[name + _WHOLE]
        return list(found.items())

    def _entry(self, client: Client, name: str, attributes: Attributes) -> Entry:
        if attributes.size is None:
            attributes = client.ask(
                protocol.STAT, text(self._path(name)), protocol.ATTRS
            ).attributes()
        if attributes.size is None:
            raise SparsebakError(f"{self._host.name} does not say how large its files are")
        return Entry(attributes.size, _version(attributes))

    @override
    def get(self, name: str, entry: Entry, target: Path) -> None:
        with open(target, "wb") as file:
            self._read(name, entry, 0, entry.size, file.write)

    @override
    def get_range(self, name: str, entry: Entry, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        self._read(name, entry, offset, length, parts.append)
        return b"".join(parts)

    def _read(
        self, name: str, entry: Entry, offset: int, length: int, take: Callable[[bytes], object]
    ) -> None:
        path = self._path(name + _WHOLE if name in self._elsewhere else name)
        with self._asking(name) as client:
            handle = client.open(path, protocol.FOR_READING)
            looked = client.send(protocol.FSTAT, text(handle))
            got = client.read(handle, offset, length, take)
            there = self._looked_at(client, looked, path)
            client.let_go(handle)
        if (there.size, _version(there)) != entry and there.size is not None:
            raise Changed(name)
        if got != length:
            raise Unreachable(f"{name} came with fewer bytes than the server says")

    @staticmethod
    def _looked_at(client: Client, number: int, path: bytes) -> Attributes:
        """The attributes of an open file; by its name, from a server that cannot tell otherwise."""
        try:
            return client.answer(number, protocol.ATTRS).attributes()
        except Refused:
            return client.ask(protocol.STAT, text(path), protocol.ATTRS).attributes()

    @override
    def put(self, name: str, source: Path, old: Entry | None = None) -> str:
        try:
            return self._put(name, source, old)
        except FileNotFoundError:  # a folder that was there is gone
            self._folders.forget()
            return self._put(name, source, old)

    def _put(self, name: str, source: Path, old: Entry | None) -> str:
        path, size = self._path(name), source.stat().st_size
        with self._asking(name) as client:
            self._folders.make(client, path.rpartition(b"/")[0])
            try:
                # Times are whole seconds, on some disks two: what is written again within one, at
                # the same size, would pass for what it replaces, on every machine with a copy.
                for _ in range(_TRIES):
                    version = self._upload(client, path + _UPLOADING.encode(), source, size)
                    if old is None or not version or (size, version) != old:
                        break
                    stopping.sleep(_TICK)
                attributes = extensions.replace(client, path, _UPLOADING.encode(), _WHOLE.encode())
            except (Refused, SparsebakError):
                with suppress(Refused):
                    client.ask(protocol.REMOVE, text(path + _UPLOADING.encode()))
                raise
            if attributes is None or (attributes.size, _version(attributes)) != (size, version):
                # Not of the file that was uploaded: perhaps it was looked at before the rename.
                attributes = client.ask(protocol.STAT, text(path), protocol.ATTRS).attributes()
            self._elsewhere -= {name}
            return _version(attributes)

    def _upload(self, client: Client, path: bytes, source: Path, size: int) -> str:
        """Have a whole file there, and durable as far as the server can; returns its version."""
        try:
            handle = client.open(path, protocol.FOR_WRITING)
        except Refused as error:
            raise self._not_written(client, error) from None
        try:
            with open(source, "rb") as file:
                client.write(handle, iter(lambda: file.read(protocol.BLOCK), b""))
            # Not before all is written, nor closed before both are answered: a server should keep
            # what is asked of one file in order (section 6.1), but it is a backup if it does not.
            syncing = extensions.begin_sync(client, handle)
            looked = client.send(protocol.FSTAT, text(handle))
            extensions.end_sync(client, syncing)
            there = self._looked_at(client, looked, path)
            client.close(handle)
        except Refused as error:
            client.settle()
            with suppress(Refused):
                client.close(handle)
            raise self._not_written(client, error) from None
        if there.size not in (None, size):
            raise Unreachable(f"the server has {there.size} bytes of {size}")
        return _version(there)

    def _not_written(self, client: Client, error: Refused) -> Exception:
        if error.code != protocol.FAILURE:
            return error
        # All that SFTP has for a full disk, a quota, a broken disk.
        space = extensions.space(client, self._root)
        if space is not None and space.free < _ROOM:
            what, free = "the server's disk is full", f", {space.free} bytes are free"
        else:
            what, free = "the server's disk is likely full or read-only, or a quota used up", ""
        return NoRoomError(f"{self._host.name} cannot store more: {what} ({error}{free})")

    @override
    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError), self._asking(name) as client:
            client.ask(protocol.REMOVE, text(self._path(name)))

    @override
    def times(self, folder: str) -> dict[str, float]:
        with self._asking() as client:
            return {
                raw.decode(errors="surrogateescape"): float(attributes.mtime or 0)
                for _, entries in client.folders([self._path(folder)], MOST)
                for raw, attributes in entries
                if attributes.is_file is not False and raw not in (b".", b"..")
            }

    @override
    def make(self, name: str, raw: bytes) -> bool | None:
        path = self._path(name)
        with self._asking(name) as client:
            if extensions.LINK in client.extensions and self._link(client, path, raw):
                return True
            try:
                handle = self._folders.create(client, path, protocol.EXCLUSIVE)
            except Refused as error:
                if error.code != protocol.FAILURE:
                    raise
                # The answer of version 3 to all else, a name that exists among it: is it that?
                try:
                    client.ask(protocol.STAT, text(path), protocol.ATTRS)
                except Refused as missing:
                    if missing.code != protocol.NO_SUCH_FILE:
                        raise
                    raise self._not_written(client, error) from None
                return False
            try:
                self._fill(client, handle, raw)
            except (Refused, SparsebakError):  # an empty one would be somebody's who has begun
                client.agreed(client.send(protocol.REMOVE, text(path)))
                raise
        return True

    def _link(self, client: Client, path: bytes, raw: bytes) -> bool:
        """Make a file whole at once, so that whoever dies here leaves nothing that is nobody's;
        False where that cannot be.
        """
        beside = path.rpartition(b"/")[0] + b"/probe-" + os.urandom(8).hex().encode()
        try:
            handle = self._folders.create(client, beside, protocol.EXCLUSIVE)
        except Refused as error:  # for want of room: nothing has that name
            raise self._not_written(client, error) from None
        try:
            self._fill(client, handle, raw)
        except (Refused, SparsebakError) as error:
            client.agreed(client.send(protocol.REMOVE, text(beside)))
            if isinstance(error, SparsebakError):
                raise
            return False
        # Whole by now. A server that did the second of these first would refuse the link.
        linking = client.begin(extensions.LINK, text(beside, path))
        removing = client.send(protocol.REMOVE, text(beside))
        linked = client.agreed(linking)  # or the name exists, or there are no hard links there
        client.agreed(removing)
        return linked

    def _fill(self, client: Client, handle: bytes, raw: bytes) -> None:
        try:
            client.write(handle, [raw])
        except Refused as error:
            client.settle()
            raise self._not_written(client, error) from None
        finally:
            client.close(handle)

    @override
    def put_small(self, name: str, raw: bytes, again: bool = False) -> None:
        path = self._path(name)
        with self._asking(name) as client:
            if again:
                handle = client.open(path, protocol.IN_PLACE)
            else:
                handle = self._folders.create(client, path, protocol.FOR_WRITING)
            self._fill(client, handle, raw)

    @override
    def get_small(self, name: str, limit: int) -> bytes:
        parts: list[bytes] = []
        with self._asking(name) as client:
            # What no listing told of may be a link, or a FIFO that would be waited for.
            asked = client.ask(protocol.LSTAT, text(self._path(name)), protocol.ATTRS)
            there = asked.attributes()
            if there.is_file is False:
                raise FileNotFoundError(name)
            handle = client.open(self._path(name), protocol.FOR_READING)
            client.read(handle, 0, limit, parts.append, there.size or 0)
            client.let_go(handle)
        return b"".join(parts)

    @override
    def sweep(self) -> None:
        with self._asking() as client:
            names = {name for name, _ in self._folders.files(client)}
            for name in sorted(names):
                path = self._path(name)
                if name.endswith(_WHOLE) and name.removesuffix(_WHOLE) not in names:
                    new = self._path(name.removesuffix(_WHOLE))
                    client.ask(protocol.RENAME, text(path, new))
                elif name.endswith((_WHOLE, _UPLOADING)):
                    with suppress(Refused):  # whoever may only add leaves it
                        client.ask(protocol.REMOVE, text(path))
        self._elsewhere = frozenset()

    @override
    def space(self) -> Room | None:
        with self._asking() as client:
            return extensions.space(client, self._root)

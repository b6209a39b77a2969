# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of a session as a tar file that is written as they are read: in POSIX's pax format, with
the extensions for holes, attributes and ACLs that GNU tar, libarchive and Python know.

A tar file has no checksum of contents, and cannot take back what it has begun. So a file is begun
when the first MiBs of it are read: one that cannot be read until then is named and left out. Where
more of a larger one cannot be read, the tar file ends there, without the mark that ends a whole
one; zeros in place of what is missing would look like the file.
"""

import stat
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from backup_vm.errors import DamagedError, SparsebakError
from backup_vm.files.answers import Extents, FileSystemError
from backup_vm.files.copying import PLAIN, SPECIAL_MODE
from backup_vm.files.session import Found, SessionFiles, shown

BLOCK = 512
_END = bytes(2 * BLOCK)
_RECORD = 20 * BLOCK
"""What the whole is filled up to, as tar(1) does it."""
AHEAD = 4 << 20
"""Bytes of a file that are read before it is begun."""
_WORTH = 64 << 10
"""Bytes of holes from which on a file is written as a sparse one: not every program knows these."""
_MOST_NAMES = 100_000
"""Files with several names of which the first is remembered; others are written again."""
_MOST_ATTRIBUTES = 1 << 20
"""Bytes of one file's attributes."""
_ZEROS = bytes(1 << 20)
_ACLS = {"system.posix_acl_access": "access", "system.posix_acl_default": "default"}
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_VERSION = struct.pack("<I", 2)
_ACL_TAGS = {1: "user:", 2: "user:{}", 4: "group:", 8: "group:{}", 16: "mask:", 32: "other:"}
_DEVICES = {
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
_MOST_DEVICE = 1 << 21
"""What a device's numbers are below in a tar file."""


@dataclass
class Tarred:
    """What was written: ``files`` with ``size`` bytes of contents; ``troubles``: what could not be
    read and was named; ``left_out``: devices and the like, and rights that were not given.
    """

    files: int = 0
    size: int = 0
    troubles: int = 0
    left_out: int = 0


class TarWriter:
    """Writes a tar file of one file or folder. Memory is bounded, whatever is in the image.

    ``put`` takes the bytes, ``tell`` a line for each file that is left out; ``privileged``: also
    devices, setuid, setgid and sticky bits, and attributes that give rights.
    """

    def __init__(
        self,
        files: SessionFiles,
        put: Callable[[bytes], None],
        tell: Callable[[str], None],
        privileged: bool,
    ) -> None:
        self._files, self._put, self._tell, self._privileged = files, put, tell, privileged
        self._names: dict[int, tuple[str, int]] = {}
        """The first name of files with several, and how many others are still to come."""
        self._written = 0
        self.done = Tarred()

    def write(self, top: Found) -> Tarred:
        """All of it, up to the mark at the end. Names begin with the last part of its path, or
        with ``.`` for the whole file system.

        Raises DamagedError or FileSystemError where the rest of a file that was begun cannot be
        read, and whatever ``put`` raises: what was written is no whole tar file then.
        """
        cut = len(top.path.rpartition(b"/")[0]) + 1
        prefix = b"" if top.path != b"/" else b"./"
        self._add(top, prefix + top.path[cut:])
        if stat.S_ISDIR(top.stat.mode):
            for _, found in self._files.walk(top, self._trouble):
                self._add(found, prefix + found.path[cut:])
        self._out(_END)
        self._out(bytes(-self._written % _RECORD))
        return self.done

    def _out(self, data: bytes) -> None:
        self._put(data)
        self._written += len(data)

    def _add(self, found: Found, path: bytes) -> None:
        name = path.decode("utf-8", "surrogateescape")
        try:
            written = self._linked(found, name) or self._made(found, name)
        except _CutOff as cut:
            raise cut.error from None
        except (DamagedError, FileSystemError) as error:
            self._trouble(found.path, str(error))
            return
        if written:
            self.done.files += 1
        else:
            self.done.left_out += 1

    def _linked(self, found: Found, name: str) -> bool:
        """Whether it is another name of a file that was written."""
        if found.stat.links < 2 or stat.S_ISDIR(found.stat.mode):
            return False
        first, left = self._names.get(found.node, ("", 0))
        if not first:
            return False
        if left == 1:
            del self._names[found.node]
        else:
            self._names[found.node] = first, left - 1
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = tarfile.LNKTYPE, first, self._mode(found)
        info.mtime = max(found.stat.mtime // 10**9, 0)
        self._head(info)
        return True

    def _remember(self, found: Found, name: str) -> None:
        if found.stat.links > 1 and len(self._names) < _MOST_NAMES:
            self._names[found.node] = name, found.stat.links - 1

    def _made(self, found: Found, name: str) -> bool:
        """Write it; False where it is nothing that is given."""
        info, kind = tarfile.TarInfo(name), stat.S_IFMT(found.stat.mode)
        if kind == stat.S_IFDIR:
            info.type = tarfile.DIRTYPE
            try:
                self._describe(info, found)
            except (DamagedError, FileSystemError) as error:  # what is in it is written
                self._trouble(found.path, str(error))
            self._head(info)
            return True
        if kind == stat.S_IFREG:
            self._describe(info, found)
            self._regular(info, found)
        elif kind == stat.S_IFLNK:
            info.type = tarfile.SYMTYPE
            info.linkname = self._files.link(found.node).decode("utf-8", "surrogateescape")
            self._describe(info, found)
            self._head(info)
        elif self._privileged and kind in _DEVICES:
            if max(found.stat.major, found.stat.minor) >= _MOST_DEVICE:
                return False
            info.type = _DEVICES[kind]
            info.devmajor, info.devminor = found.stat.major, found.stat.minor
            self._describe(info, found)
            self._head(info)
        else:
            return False
        self._remember(found, name)
        return True

    def _mode(self, found: Found) -> int:
        mode = stat.S_IMODE(found.stat.mode)
        return mode if self._privileged else mode & ~SPECIAL_MODE

    def _describe(self, info: tarfile.TarInfo, found: Found) -> None:
        """Owner, times, mode and attributes."""
        about = found.stat
        info.uid, info.gid, info.mode = about.uid, about.gid, self._mode(found)
        info.mtime = max(about.mtime // 10**9, 0)
        info.pax_headers = {"mtime": _time(about.mtime), "atime": _time(about.atime)}
        if info.mode != stat.S_IMODE(about.mode):
            self.done.left_out += 1
        attributes = self._files.attributes(found.node)
        if sum(map(len, attributes.values())) > _MOST_ATTRIBUTES:
            raise FileSystemError("its attributes are too many for a tar file")
        for name, value in attributes.items():
            if not self._privileged and not name.startswith(PLAIN):
                self.done.left_out += 1
                continue
            text = acl_text(value) if name in _ACLS else None
            if text is not None:
                info.pax_headers[f"SCHILY.acl.{_ACLS[name]}"] = text
            elif name.isascii():
                keyword = name.replace("%", "%25").replace("=", "%3D")
                info.pax_headers[f"SCHILY.xattr.{keyword}"] = _text(value)
            else:
                self.done.left_out += 1

    def _head(self, info: tarfile.TarInfo) -> None:
        self._out(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _regular(self, info: tarfile.TarInfo, found: Found) -> None:
        size = found.stat.size
        extents = self._files.extents(found) if size else Extents()
        pieces = _joined(extents)
        held = sum(length for _, length in pieces())
        if size - held >= _WORTH:
            listed = _map_length(pieces, size)
            info.size = listed + held
            sparse = {"major": "1", "minor": "0", "name": info.name, "realsize": str(size)}
            headers = {f"GNU.sparse.{key}": value for key, value in sparse.items()}
            info.pax_headers = {**info.pax_headers, **headers}
            # what a program that does not know of holes writes must not look like the file
            info.name = f"GNUSparseFile.0/{self.done.files}"
            parts = self._begun(found, extents, dense=False)
            self._head(info)
            for text in _map(pieces, size):
                self._out(text)
            self._out(bytes(-self._written % BLOCK))
        else:
            info.size = size
            parts = self._begun(found, extents, dense=True)
            self._head(info)
        for data in parts:
            self._out(data)
        self._out(bytes(-self._written % BLOCK))
        self.done.size += size

    def _begun(self, found: Found, extents: Extents, dense: bool) -> Iterator[bytes]:
        """Its contents, of which the first AHEAD bytes are read already. What is drawn raises
        _CutOff in place of what reading raises.
        """
        parts = self._contents(found, extents, dense)
        first, size = [], 0
        for data in parts:
            first.append(data)
            size += len(data)
            if size >= AHEAD:
                break

        def all_of_it() -> Iterator[bytes]:
            while first:
                yield first.pop(0)
            try:
                yield from parts
            except (DamagedError, FileSystemError) as error:
                hint = "copy what can be read: sparsebak files cp"
                text = f"{shown(found.path)}: {error}; the tar file is cut off within it"
                raise _CutOff(type(error)(text, hint)) from None

        return all_of_it()

    def _contents(self, found: Found, extents: Extents, dense: bool) -> Iterator[bytes]:
        reached = 0
        if len(extents):
            for offset, data in self._files.contents(found, extents):
                if dense:
                    yield from _zeros(offset - reached)
                yield data
                reached = offset + len(data)
        if dense:
            yield from _zeros(found.stat.size - reached)

    def _trouble(self, path: bytes, text: str) -> None:
        self.done.troubles += 1
        self._tell(f"{shown(path)}: {text}")


class _CutOff(Exception):
    """A file that was begun cannot be ended."""

    def __init__(self, error: SparsebakError) -> None:
        super().__init__(str(error))
        self.error = error


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield _ZEROS[:count]
        count -= len(_ZEROS)


def _joined(extents: Extents) -> Callable[[], Iterator[tuple[int, int]]]:
    """Where a file's data is, offset and length, those side by side as one; to be asked again."""

    def pieces() -> Iterator[tuple[int, int]]:
        start = end = 0
        for offset, length, _ in extents:
            if offset != end and end > start:
                yield start, end - start
            if offset != end:
                start = offset
            end = offset + length
        if end > start:
            yield start, end - start

    return pieces


def _map(pieces: Callable[[], Iterator[tuple[int, int]]], size: int) -> Iterator[bytes]:
    """GNU's map of a sparse file, format 1.0: how many pieces, and of each where and how long; the
    last one is empty, at the end. Without what fills it up to a block.
    """
    yield f"{sum(1 for _ in pieces()) + 1}\n".encode()
    for offset, length in pieces():
        yield f"{offset}\n{length}\n".encode()
    yield f"{size}\n0\n".encode()


def _map_length(pieces: Callable[[], Iterator[tuple[int, int]]], size: int) -> int:
    """Its length in bytes, filled up to a block."""
    length = sum(map(len, _map(pieces, size)))
    return -(-length // BLOCK) * BLOCK


def _time(nanoseconds: int) -> str:
    """A time in pax's way: seconds since 1970, with all digits."""
    sign = "-" if nanoseconds < 0 else ""
    seconds, rest = divmod(abs(nanoseconds), 10**9)
    return f"{sign}{seconds}.{rest:09}" if rest else f"{sign}{seconds}"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def acl_text(raw: bytes) -> str | None:
    """An ACL as Linux keeps it, in the words that tar files have; None where it is none."""
    if raw[:4] != _ACL_VERSION or len(raw) % _ACL_ENTRY.size != len(_ACL_VERSION):
        return None
    words = []
    for tag, allowed, who in _ACL_ENTRY.iter_unpack(raw[4:]):
        if tag not in _ACL_TAGS or allowed > 7:
            return None
        bits = "".join(
            letter if allowed & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1))
        )
        words.append(f"{_ACL_TAGS[tag].format(who)}:{bits}")
    return ",".join(words)

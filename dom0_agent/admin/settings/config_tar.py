# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0's own configuration as a tar archive: files and folders as listed, in order, so that what
did not change is the same.

Whatever stands in the way of one file (it goes while it is read, it is a socket, it cannot be read)
concerns that file alone. What is left out is listed in the archive itself, as its last file, and so
is a file that did not stay the same while it was read.
"""

import os
import stat
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from common.text import printable
from dom0_agent.admin.settings import extended
from dom0_agent.admin.settings.machine import FOLDER, Item
from wire.status import Code, Refused

LEFT_OUT = "sparsebak-left-out.txt"
"""Name of the last file in the archive: a line for each thing that is not in it as it was, ``PATH:
WHY``.
"""
_CACHE, _TRASH = ".cache", (".local", "share", "Trash")
_LARGEST = 256 << 20
"""Bytes; larger files in dom0's home are not configuration."""
_BLOCK = 1 << 20
_TRIES = 3
"""Times that a file is read that changes meanwhile."""
_PAUSE = 0.05
"""Seconds before it is read again."""
_CHECK_ROOM = 64 << 20
"""Bytes written between two looks at the room there is: dom0's root is no place for what somebody
mounted below /home.
"""
_STRANGE = (
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def write(
    paths: tuple[str, ...],
    out: IO[bytes],
    require_room: Callable[[], None] = lambda: None,
    machine: Iterable[Item] = (),
) -> list[str]:
    """Write all that is there of ``paths``: regular files, folders and links, with owners, modes,
    ACLs and other extended attributes. Then what describes the ``machine``.

    Returns what was left out, in lines. ``out`` can be read, too: the archive is read back once.
    Refused when it is not all there, or by ``require_room``, which is asked every now and then;
    OSError when it cannot be written.
    """
    archive = _Archive(out)
    looked = 0
    for path in _below(paths, archive.left_out):
        if out.tell() - looked >= _CHECK_ROOM:
            looked = out.tell()
            require_room()
        archive.add_path(path)
    for item in machine:
        archive.add_item(item)
    require_room()
    return archive.finish()


class _Archive:
    """What ``write`` makes, as far as it has come: the names in it, in order, and the lines of what
    is left out.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self._out, self._links = out, _Links()
        self._names: list[str] = []
        self.left_out: list[str] = []

    def add_path(self, path: Path) -> None:
        """A file, folder or link of the machine, or a line of why not."""
        name = str(path).lstrip("/")
        try:
            if torn := _add(name, path, self._out, self._links):
                self.left_out.append(f"{path}: {torn}")
            self._names.append(name)
        except FileNotFoundError:  # it went meanwhile, as files do
            return
        except _Unreadable as error:
            self.left_out.append(f"{path}: {error}")

    def add_item(self, item: Item) -> None:
        """What describes the machine, or a line of why not."""
        name = f"{FOLDER}/{item.name}"
        if item.error:
            self.left_out.append(f"{name}: {item.error}")
        else:
            self._add_bytes(name, item.contents)

    def finish(self) -> list[str]:
        """Add the list of what is left out, end the archive, and read it back; returns the list."""
        left_out = [printable(line) for line in self.left_out]
        if left_out:
            text = "".join(f"{line}\n" for line in left_out)
            self._add_bytes(LEFT_OUT, text.encode("utf-8", "backslashreplace"))
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))
        self._out.flush()
        _read_back(self._out, self._names)
        return left_out

    def _add_bytes(self, name: str, contents: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(contents), 0o600
        padding = bytes(-len(contents) % tarfile.BLOCKSIZE)
        self._out.write(_header(info) + contents + padding)
        self._names.append(name)


class _Links:
    """Files of several names (hard links): under which name each is in the archive already."""

    def __init__(self) -> None:
        self._names: dict[tuple[int, int, int, int], str] = {}

    def first(self, name: str, found: os.stat_result) -> str:
        """Where a file's contents are, or nothing if ``name`` is to be that."""
        if found.st_nlink < 2:
            return ""
        # A number that another file was given since, or contents that were written since, are
        # nothing to refer to.
        key = found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size
        there = self._names.setdefault(key, name)
        return "" if there == name else there


class _Unreadable(Exception):
    """Why something is left out."""


def _below(paths: tuple[str, ...], left_out: list[str]) -> Iterator[Path]:
    """Everything at and below ``paths``, once, parents first, in order of names."""
    seen: set[Path] = set()
    waiting = [Path(path) for path in reversed(paths)]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        try:
            with _reading():
                mode = os.lstat(path).st_mode
        except FileNotFoundError:
            continue
        except _Unreadable as error:  # where a dead or another user's file system is mounted, say
            left_out.append(f"{path}: {error}")
            continue
        if path.name == _CACHE or path.parts[-3:] == _TRASH:
            left_out.append(
                f"{path}: a folder of things that can be made again or were thrown away"
            )
            continue
        yield path
        if stat.S_ISDIR(mode):
            try:
                waiting += sorted(path.iterdir(), reverse=True)
            except FileNotFoundError:
                continue
            except OSError as error:
                left_out.append(f"{path}: {error.strerror}")


@contextmanager
def _reading() -> Iterator[None]:
    """An error of the file that is read is a reason to leave it out; one of the archive is not."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _Unreadable(error.strerror or str(error)) from None


def _add(name: str, path: Path, out: IO[bytes], links: _Links) -> str:
    """Add one thing; _Unreadable or FileNotFoundError, and nothing added, when it cannot be.
    Returns what is wrong with it as added, if anything is.
    """
    with _reading():
        found, target = os.lstat(path), ""
        if stat.S_ISREG(found.st_mode):
            # Not what has become a FIFO or a link since: opening must not block, nor lead
            # elsewhere.
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            file = open(fd, "rb", buffering=0)
            found, attributes = os.fstat(fd), extended.records(fd)
        elif stat.S_ISLNK(found.st_mode):
            target, attributes = os.readlink(path), extended.records(path)
        else:
            attributes = extended.records(path) if stat.S_ISDIR(found.st_mode) else {}
    info = _info(name, found, attributes)
    if stat.S_ISREG(found.st_mode):
        with file:
            if first := links.first(name, found):
                info.type, info.linkname, info.pax_headers = tarfile.LNKTYPE, first, {}
                out.write(_header(info))
                return ""
            return _add_steady(info, file, found, out)
    if target:
        info.type, info.linkname = tarfile.SYMTYPE, target
    elif stat.S_ISDIR(found.st_mode):
        info.type = tarfile.DIRTYPE
    else:
        kind = next((text for is_it, text in _STRANGE if is_it(found.st_mode)), "no file")
        raise _Unreadable(f"it is {kind}")
    out.write(_header(info))
    return ""


def _info(name: str, found: os.stat_result, attributes: dict[str, str]) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.pax_headers = attributes
    info.mode, info.uid, info.gid = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid
    info.mtime = int(found.st_mtime)
    return info


def _add_steady(
    info: tarfile.TarInfo, file: IO[bytes], found: os.stat_result, out: IO[bytes]
) -> str:
    """Add a file, read again if it changed meanwhile. Returns what is to be said of one that always
    does.
    """
    start = out.tell()
    for left in reversed(range(_TRIES)):
        _add_file(info, file, out)
        with _reading():
            now = os.fstat(file.fileno())
        if (now.st_mtime_ns, now.st_size) == (found.st_mtime_ns, found.st_size):
            return ""
        if left:
            time.sleep(_PAUSE)
            out.seek(start)
            out.truncate()
            with _reading():
                file.seek(0)
                found = os.fstat(file.fileno())
            info.mtime = int(found.st_mtime)
    return "it changed while it was read: what is here may be of two moments"


def _add_file(info: tarfile.TarInfo, file: IO[bytes], out: IO[bytes]) -> None:
    """Its bytes as they come, and then its header, which says how many came: the file may change
    while it is read.

    _Unreadable with ``out`` as before.
    """
    start, size, info.size = out.tell(), 0, 0
    out.write(_header(info))
    try:
        while block := _block(file):
            size += len(block)
            if size > _LARGEST:
                raise _Unreadable(f"it is larger than {_LARGEST >> 20} MiB")
            out.write(block)
    except _Unreadable:
        out.seek(start)
        out.truncate()
        raise
    out.write(bytes(-size % tarfile.BLOCKSIZE))
    end = out.tell()
    out.seek(start)
    info.size = size
    # As long as the header with size 0 was: a size below 8 GiB needs no record of its own.
    out.write(_header(info))
    out.seek(end)


def _block(file: IO[bytes]) -> bytes:
    with _reading():
        return file.read(_BLOCK)


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _read_back(out: IO[bytes], names: list[str]) -> None:
    """Whether a reader finds what was written; it is what a restore would be left with."""
    out.seek(0)
    with tarfile.open(fileobj=out, mode="r:") as tar:
        found = [member.name for member in tar]
    out.seek(0, os.SEEK_END)
    if found != names:
        raise Refused(
            Code.INTERNAL,
            f"dom0's configuration was not saved completely: {len(found)} of {len(names)} files",
        )

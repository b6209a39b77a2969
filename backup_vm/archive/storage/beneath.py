# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a folder that others may write to: opened beneath it, regular files only, no link
followed.

Whoever can write to a disk can put a link, a FIFO or a device where a file of ours belongs. So each
part of a name is opened relative to the folder before it, with O_NOFOLLOW, and nothing is done with
a file before it is known to be a regular one. A walk like this is as narrow as
openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS) for names without ``..``, which are refused, and
needs no call that Python lacks. The root itself may be a link: its path is the user's.
"""

import errno
import functools
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from backup_vm.errors import DamagedError, UnreadableError
from common.durable import UNREADABLE, sync_directory_fd

_FOREIGN = frozenset({errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENOTDIR, errno.ENODEV})
"""What open(2) says of a link, a socket or device, a folder, and a file that is no folder."""
_UNREADABLE = UNREADABLE | {errno.EACCES, errno.EPERM}
"""A bad sector, what a file system's own checksum refuses, and what is not for us: other files may
be sound.
"""
_KEEPING_CHANGES = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs"})
"""File systems that have times of change on disk. exFAT, for one, has the time of the last write in
their place after the next mount, so that all would seem to be changed; of what another machine or
program answers (NFS, SMB, FUSE) nothing is known.
"""
_CLOSED = os.O_CLOEXEC | os.O_NOFOLLOW
_UNHURRIED = os.O_NONBLOCK | os.O_NOCTTY
"""open(2) of a FIFO must not wait for somebody at its other end."""


class _Telling:
    """What ``Beneath.telling`` returns. No generator: Python 3.12 and 3.13 keep an error that one
    of those replaces in a cycle, with all that the frames below hold, a folder that is open too.
    """

    def __init__(self, beneath: "Beneath", name: str, doing: str) -> None:
        self._beneath, self._name, self._doing = beneath, name, doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            self._beneath.tell(error, self._name, self._doing)


class Beneath:
    """Files beneath a folder. Names are relative, with slashes. Raises DamagedError, naming what is
    there, for anything that is not a regular file, or is behind a link; OSError with the whole
    path otherwise.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._fd = -1

    def fd(self) -> int:
        """The folder itself, open for as long as this object is."""
        if self._fd < 0:
            self._fd = os.open(str(self.root), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._fd

    def close(self) -> None:
        """Let go of the folder; it is opened again when needed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    __del__ = close

    def telling(self, name: str, doing: str = "read") -> "_Telling":
        """Name the file in errors, and tell damage from what else may be wrong."""
        return _Telling(self, name, doing)

    def tell(self, error: OSError, name: str, doing: str) -> None:
        """Raise in place of an error what is to be said of it, if that is anything else."""
        path = self.root / name
        if error.errno is None or error.filename == str(self.root):
            return
        if error.errno in _FOREIGN:
            raise DamagedError(f"{path} {self._strange(name)}", _HINT) from None
        if doing == "read" and error.errno in _UNREADABLE:
            raise UnreadableError(f"{path} cannot be read: {error.strerror}") from None
        raise OSError(error.errno, error.strerror, str(path)) from None

    def _strange(self, name: str) -> str:
        """What keeps a name from being that of a regular file beneath, for people."""
        parts = name.split("/")
        for upto in range(1, len(parts) + 1):
            try:
                # Only to say what it is: nothing is opened by this path.
                found = os.lstat(self.root / "/".join(parts[:upto]))
            except OSError:
                break
            whole = upto == len(parts)
            if stat.S_ISLNK(found.st_mode):
                return "is a link" if whole else "is behind a link"
            if not whole and not stat.S_ISDIR(found.st_mode):
                return "is in something that is not a folder"
            if whole and stat.S_ISREG(found.st_mode):
                return "is a file where a folder belongs"
        return "is not a regular file"

    @contextmanager
    def folder(self, name: str, make: bool = False) -> Iterator[tuple[int, str]]:
        """The open folder that a file is in, and the file's name there; with ``make`` made,
        durably, if missing.
        """
        *folders, last = name.split("/")
        if not last or {"", ".", ".."} & {*folders, last}:
            raise DamagedError(f"{name!r} cannot be the name of a file")
        with self.opened(folders, make) as fd:
            yield fd, last

    @contextmanager
    def opened(self, folders: list[str], make: bool = False, listed: bool = False) -> Iterator[int]:
        """A folder beneath, open for names in it; with ``listed`` or ``make`` also to be listed and
        synced.
        """
        fd = self.fd()
        try:
            for part in folders:
                inner = _enter(fd, part, make, listed)
                if fd != self._fd:
                    os.close(fd)
                fd = inner
            yield fd
        finally:
            if fd != self._fd:
                os.close(fd)

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open a regular file that is there."""
        doing = "read" if flags == os.O_RDONLY else "write"
        with self.telling(name, doing), self.folder(name) as (folder, last):
            fd = os.open(last, flags | _CLOSED | _UNHURRIED, dir_fd=folder)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd
            os.close(fd)
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    def create(self, folder: int, name: str, mode: int = 0o666) -> int:
        """A new file in an open folder, for writing. What has its name is removed first, and never
        written to: it may be left over, or a link, or another name of a file elsewhere.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _CLOSED
        try:
            return os.open(name, flags, mode, dir_fd=folder)
        except FileExistsError:
            os.unlink(name, dir_fd=folder)
            return os.open(name, flags, mode, dir_fd=folder)

    def stat(self, name: str) -> os.stat_result:
        """What a regular file is."""
        with self.telling(name), self.folder(name) as (folder, last):
            found = os.stat(last, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
            return found

    def exists(self, name: str) -> bool:
        """Whether there is anything of that name, without asking what."""
        with suppress(FileNotFoundError), self.telling(name), self.folder(name) as (folder, last):
            os.stat(last, dir_fd=folder, follow_symlinks=False)
            return True
        return False

    def entries(self, folder: str) -> list[tuple[str, bool]]:
        """The names in a folder beneath, and whether each is a folder; nothing where there is none.
        No link is followed.
        """
        with self._listing(folder) as found:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]

    def stamps(self, folder: str) -> list[tuple[str, int, str]]:
        """The names in a folder beneath, their bytes (-1 of what is no regular file), and a text
        that is another one when the file was written again, or another one took its place.

        That is when it was written, and where the file system keeps it, when it or its name was
        changed last, which nobody can set back. Inode numbers tell no more, and on some file
        systems (FAT, SMB, most of FUSE) they are others after each mount.
        """
        stamps = []
        with self._listing(folder) as found:
            for entry in found:
                with suppress(FileNotFoundError):  # another program's, or a temporary file's
                    status = entry.stat(follow_symlinks=False)
                    size = status.st_size if stat.S_ISREG(status.st_mode) else -1
                    stamp = str(status.st_mtime_ns)
                    if self._keeps_changes:
                        stamp += f" {status.st_ctime_ns}"
                    stamps.append((entry.name, size, stamp))
        return stamps

    @functools.cached_property
    def _keeps_changes(self) -> bool:
        """Whether the times of change (ctime) are the same after another mount."""
        return file_system(self.fd()) in _KEEPING_CHANGES

    @contextmanager
    def _listing(self, folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        try:
            with (
                self.telling(folder),
                self.opened(folder.split("/"), listed=True) as fd,
                os.scandir(fd) as found,
            ):
                yield found
        except FileNotFoundError:
            yield iter(())


def file_system(fd: int) -> str:
    """What kind of file system an open file is on, as the kernel calls it; empty where that cannot
    be known.
    """
    # Not by statfs(2), which Python lacks, for ctypes takes its time.
    with suppress(OSError, ValueError, StopIteration):
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
        mount = next(line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:"))
        with open("/proc/self/mountinfo", "rb") as mounts:
            for line in mounts:
                if line.split(maxsplit=1)[0] == mount.encode():
                    return line.partition(b" - ")[2].split()[0].decode("ascii", "replace")
    return ""


def _enter(folder: int, name: str, make: bool, listed: bool) -> int:
    # Only to go through one, a folder is not opened for reading: on network mounts that is a
    # request of its own.
    flags = os.O_RDONLY if make or listed else os.O_PATH
    while True:
        try:
            return os.open(name, flags | os.O_DIRECTORY | _CLOSED, dir_fd=folder)
        except FileNotFoundError:
            if not make:
                raise
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=folder)
            sync_directory_fd(folder)


class GuardedFile(io.FileIO):
    """A regular file beneath, for reading; a sector that cannot be read is damage to this file."""

    def __init__(self, beneath: Beneath, name: str) -> None:
        self._beneath, self._name = beneath, name
        super().__init__(beneath.open(name), "r")

    def readinto(self, buffer: "memoryview | bytearray") -> int | None:  # type: ignore[override]
        """See io.FileIO."""
        with self._beneath.telling(self._name):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        """See io.FileIO."""
        with self._beneath.telling(self._name):
            return super().readall()


_HINT = "sparsebak made no such thing; look at it, and remove it"

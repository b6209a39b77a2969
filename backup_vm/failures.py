# SPDX-License-Identifier: GPL-2.0-or-later
"""What a file system's refusals mean for people: one line, and what to do about it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from backup_vm.errors import NoRoomError, SparsebakError

_GONE = "the mount has lost what is behind it: unmount it (umount -l), and mount it again"
_HINTS = {
    errno.ENOSPC: "make room there, then try again",
    errno.EDQUOT: "the quota is used up: make room, or have it raised, then try again",
    errno.EROFS: "mount it for writing; if it was, the kernel may have stopped writing after an"
    " error of the disk: see dmesg",
    errno.EFBIG: "its file system takes no files so large (FAT: 4 GiB): use another disk for it,"
    " or another file system on this one",
    errno.EIO: "the disk or the connection to it fails: see dmesg",
    errno.ENODEV: _GONE,
    errno.ENOTCONN: _GONE,
    errno.ESHUTDOWN: _GONE,
    errno.ESTALE: _GONE,
    errno.ENXIO: _GONE,
    errno.ETIMEDOUT: "what is behind the mount does not answer: try again when it does",
    errno.EHOSTDOWN: "what is behind the mount does not answer: try again when it does",
    errno.ENOLCK: "its file system has no locks",
}


def text(error: OSError) -> str:
    """``FILE: why``, as far as both are known."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    return ": ".join(filter(None, (name, error.strerror or str(error) or type(error).__name__)))


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Name a file in an OSError that names none, or a descriptor alone, as those of what is read
    and written there do.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str | bytes) or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, path) from None


def no_room(error: BaseException) -> bool:
    """Whether a disk, here or elsewhere, is full, or a quota used up."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, NoRoomError)


def hint(error: OSError) -> str:
    """What to do about it; empty where that is not known."""
    return _HINTS.get(error.errno or 0, "")


def cannot_write(target: object, error: OSError) -> SparsebakError:
    """What to raise where a file that was asked for cannot be written."""
    return SparsebakError(f"cannot write {target}: {error.strerror}", hint(error))

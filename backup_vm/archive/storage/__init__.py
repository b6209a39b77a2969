# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an archive's files are. Nothing outside this package opens them; names are relative, with
slashes.

A directory of this machine (``local``), or objects elsewhere (``remote``) in an S3-compatible store
(``s3``) or on a host reached by SFTP (``sftp``). Files are written once and appear under their
names when they are whole and durable. Some files belong to this machine alone, wherever the archive
is: the catalog, partial sessions, locks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Protocol

from backup_vm.errors import UsageError
from backup_vm.rate import Rate

if TYPE_CHECKING:
    from backup_vm.archive.lease import Locks

TEMPORARY = ".tmp"
LOCK = "archive.lock"
WHOLE = 64 << 20
"""Bytes at most of a file that is read as one."""


class NewFile(Protocol):
    """A file being written; it has its name only after ``finish``."""

    size: int

    def write(self, *parts: bytes | memoryview) -> None:
        """Append."""

    def finish(self) -> None:
        """Make it durable under its name."""

    def abandon(self) -> None:
        """Remove what was written."""


class Reader(Protocol):
    """A file to read from here and there."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from ``offset`` on, fewer at the file's end."""

    def close(self) -> None:
        """End."""


class Storage(Protocol):
    """The files of one archive. ``uploads``: how many packs may be on their way at once;
    ``pack_size``: bytes of one.

    ``elsewhere``: whether files of this machine alone, such as partial sessions, are not seen by
    other machines. ``check`` is called before anything is written, and raises what forbids it: a
    lease that is lost. ``rate``: what whoever reads or writes chunks must keep to.

    What is no regular file of the archive (a link, a FIFO, a folder) is DamagedError from every
    method that opens it, as is a file that cannot be read; nothing waits for it, and no link is
    followed.
    """

    uploads: int
    pack_size: int
    elsewhere: bool
    check: Callable[[], None]
    rate: Rate = Rate()

    def close(self) -> None:
        """Let go of what is open; it is opened again when needed."""

    def describe(self, name: str = "") -> str:
        """The place of a file, or of the archive, for people."""

    def prepare(self) -> None:
        """Make the place for a new archive; raise SparsebakError where there is something
        already.
        """

    def lock(self, shared: bool) -> int | None:
        """Keep others away, writers (shared) or all; returns a descriptor to close, None where
        nothing can be written.
        """

    def locks(self) -> "Locks":
        """The files by which writers on all machines keep each other away."""

    def refresh(self) -> None:
        """Forget what was seen of the store: another machine may have written to it."""

    def writable(self) -> bool:
        """Whether files can be written at all, as far as that is known."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def names(self, folder: str, suffix: str) -> list[str]:
        """Names of the files two levels below ``folder`` that end in ``suffix``, sorted."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file two levels below ``folder``, in no order; -1 of what is no regular
        file.
        """

    def unreadable(self) -> list[str]:
        """Names of other programs' files of which a listing tells, and that are none here."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def allocated(self, name: str) -> int:
        """Bytes that a file takes up, holes left out."""

    def read(self, name: str, limit: int = WHOLE) -> bytes:
        """A whole (small) file; raise FileNotFoundError, and DamagedError when it is larger than
        ``limit``.
        """

    def open(self, name: str) -> BinaryIO:
        """A file to read here and there, the file itself or a local copy; raise
        FileNotFoundError.
        """

    def own(self, name: str, create: bool = False) -> int:
        """A descriptor to read and write a file of this machine alone; raise FileNotFoundError, or
        with ``create`` make it.
        """

    def database(self, name: str) -> Path:
        """The path of a database of this machine alone, for SQLite; raise DamagedError for what it
        must not be let near.
        """

    def discard(self, name: str) -> None:
        """Take a database and its journal out of the way, whatever they are."""

    def local(self, name: str) -> Path:
        """A local path of it, of the file itself or a copy. Prefer ``open``: what a path leads to
        may change.
        """

    def fetch(self, names: list[str]) -> None:
        """Have local copies of these at hand, got all at once where that is quicker."""

    def reader(self, name: str) -> Reader:
        """Open a file; raise FileNotFoundError."""

    def create(self, name: str) -> NewFile:
        """Begin a file."""

    def write(self, name: str, *parts: bytes, mode: int = 0o644) -> None:
        """Write a small file at once, atomically."""

    def remove(self, *names: str) -> None:
        """Remove files durably, in this order; raise ForbiddenError where that is not allowed."""

    def clean(self) -> None:
        """Remove what a run that died has left half written."""

    def punch(self, name: str, ranges: list[tuple[int, int]]) -> bool:
        """Give the space of (offset, length) ranges back; they read as zeros then. False where that
        is impossible.
        """

    def sync(self) -> None:
        """Make what ``punch`` did durable."""

    def scratch(self) -> IO[bytes]:
        """A temporary file without a name, on a disk: it may be large, and /tmp is often memory."""

    def capacity(self) -> int | None:
        """Bytes of the whole disk; None where nobody knows."""

    def free(self) -> int | None:
        """Bytes that can still be written; None where nobody knows."""


def is_remote(location: str | Path) -> bool:
    """Whether a location is a URL rather than a directory."""
    return "://" in str(location)


def open_storage(location: str | Path) -> Storage:
    """The storage at a directory or URL; raise UsageError for a URL of a kind that is not known."""
    from backup_vm.archive.storage.local import LocalStorage

    if not is_remote(location):
        return LocalStorage(Path(location))
    from backup_vm.archive.storage.remote import RemoteStorage

    url = str(location).rstrip("/")
    scheme = url.partition("://")[0]
    if scheme in ("s3", "gs", "az"):
        from backup_vm.archive.storage.s3 import ObjectStore

        return RemoteStorage(url, ObjectStore(url))
    if scheme == "sftp":
        from backup_vm.archive.storage.sftp import SftpHost

        return RemoteStorage(url, SftpHost(url))
    raise UsageError(f"{url}: archives can be in a directory, or at s3://, gs://, az:// or sftp://")

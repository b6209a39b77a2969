# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an archive's files are. Nothing outside this package opens them; names are relative, with
slashes.

A directory of this machine (``local``), or objects elsewhere (``remote``) in an S3-compatible store
(``s3``) or on a host reached by SFTP (``sftp``). Files are written once and appear under their
names when they are whole and durable. Some files belong to this machine alone, wherever the archive
is (``workspace``): the catalog, partial sessions, locks.
"""

from pathlib import Path

from backup_vm.archive.storage.interface import (
    LOCK,
    TEMPORARY,
    UNSEEN,
    WANTED,
    WHOLE,
    Files,
    NewFile,
    Reader,
    Storage,
    Workspace,
)
from backup_vm.errors import UsageError

__all__ = [
    "LOCK",
    "WANTED",
    "TEMPORARY",
    "UNSEEN",
    "WHOLE",
    "Files",
    "NewFile",
    "Reader",
    "Storage",
    "Workspace",
    "as_it_was",
    "is_remote",
    "open_storage",
]


_AS_OF = "?as-of="


def is_remote(location: str | Path) -> bool:
    """Whether a location is a URL rather than a directory."""
    return "://" in str(location)


def as_it_was(location: str, moment: str) -> str:
    """Where the archive at a URL can be read as it was at a moment; raise UsageError where it
    cannot.
    """
    if not location.startswith("s3://"):
        raise UsageError(
            f"{location} keeps no versions that can be read",
            "only an archive in an S3-compatible store can be read as it was",
        )
    return f"{location.rstrip('/')}{_AS_OF}{moment}"


def open_storage(location: str | Path) -> Storage:
    """The storage at a directory or URL; raise UsageError for a URL of a kind that is not known."""
    from backup_vm.archive.storage.local import LocalStorage

    if not is_remote(location):
        return LocalStorage(Path(location))
    from backup_vm.archive.storage.remote import RemoteStorage

    url = str(location).rstrip("/")
    if _AS_OF in url:
        from backup_vm.archive.storage.past import PastStorage, parse_moment

        place, _, moment = url.partition(_AS_OF)
        try:
            return PastStorage(as_it_was(place, moment), place, parse_moment(moment))
        except ValueError as error:
            raise UsageError(str(error)) from None
    scheme = url.partition("://")[0]
    if scheme in ("s3", "gs", "az"):
        from backup_vm.archive.storage.s3 import ObjectStore

        return RemoteStorage(url, ObjectStore(url))
    if scheme == "sftp":
        from backup_vm.archive.storage.sftp import SftpHost

        return RemoteStorage(url, SftpHost(url))
    raise UsageError(f"{url}: archives can be in a folder, or at s3://, gs://, az:// or sftp://")

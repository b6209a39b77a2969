# SPDX-License-Identifier: GPL-2.0-or-later
"""The retention of an archive elsewhere, as this machine knows it: in a small file that is no part
of the cache, for that may be thrown away, and the archive's own archive.toml may be replaced by one
that says less.
"""

from contextlib import suppress
from pathlib import Path

from backup_vm.archive.storage import Storage
from backup_vm.errors import SparsebakError
from backup_vm.paths import read_small, state_folder
from common.durable import make_directory, replace

_LONGEST = 64


def retention(storage: Storage, archive: bytes) -> int:
    """Seconds; 0 where none is known."""
    path = _file(storage, archive)
    with suppress(OSError, SparsebakError):
        if path is not None:
            text = read_small(path, _LONGEST, "a retention").decode("ascii", "replace").strip()
            return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0
    return 0


def keep_retention(storage: Storage, archive: bytes, seconds: int) -> None:
    """Remember it. Where that cannot be done the catalog alone does."""
    path = _file(storage, archive)
    if path is not None:
        with suppress(OSError):
            make_directory(path.parent)
            replace(path, f"{seconds}\n".encode())


def _file(storage: Storage, archive: bytes) -> Path | None:
    """Where it is: of each archive and place one file; None where there is no folder for it."""
    folder = state_folder()
    if folder is None or not storage.elsewhere:
        return None
    from backup_vm.archive.notes import place_of

    place = place_of(storage.describe())
    return folder / "retention" / f"{archive.hex()}-{place}"

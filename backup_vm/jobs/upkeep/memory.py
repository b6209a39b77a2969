# SPDX-License-Identifier: GPL-2.0-or-later
"""What this machine remembers of the archives at a place: how each was kept last, in a small file
for each.

So the next run begins with what was kept least recently, which is where one that was stopped ended;
one that stays in use is noticed; and so is one that is not there any more. It is a note, not a
record: a file that cannot be read is as none.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from backup_vm import failures
from backup_vm.archive.storage import is_remote
from backup_vm.errors import LockedError, SparsebakError
from backup_vm.paths import read_small, state_folder
from backup_vm.reporting.kept_rows import KeptRow, blank
from backup_vm.reporting.rows import StatusRow
from common.durable import Busy, closing_fd, lock, make_directory, replace

_LARGEST = 1 << 20
_LOCK = "lock"
_SUFFIX = ".json"


def folder_for(place: str) -> Path:
    """Where the notes of a place are: ``$XDG_STATE_HOME/sparsebak/upkeep/<hash>``; raise
    SparsebakError.
    """
    whole = place.rstrip("/") if is_remote(place) else os.path.realpath(place)
    state = state_folder()
    if state is None:
        raise SparsebakError(
            "there is no home folder to remember in what was kept", "set XDG_STATE_HOME"
        )
    digest = hashlib.blake2b(whole.encode(errors="surrogateescape"), digest_size=16)
    return state / "upkeep" / digest.hexdigest()


class Memory:
    """The notes of a place in a folder, by archive's name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows = {row["name"]: row for row in self._read()}

    def __str__(self) -> str:
        """Where they are, for people."""
        return str(self._folder)

    def _read(self) -> Iterator[KeptRow]:
        names = list[str]()
        with suppress(FileNotFoundError, NotADirectoryError):  # "alone" says so
            names = sorted(os.listdir(self._folder))
        for name in names:
            if name.endswith(_SUFFIX):
                with suppress(OSError, ValueError, SparsebakError, RecursionError):
                    yield _row(json.loads(read_small(self._folder / name, _LARGEST, "a note")))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs at this place on this machine away; raise LockedError, SparsebakError,
        OSError.
        """
        try:
            make_directory(self._folder)
        except OSError as error:
            raise SparsebakError(
                f"there is no folder {self._folder} to remember in what was kept: {error.strerror}",
                failures.hint(error) or "set HOME or XDG_STATE_HOME to a folder of this user",
            ) from None
        try:
            fd = lock(self._folder / _LOCK)
        except Busy:
            raise LockedError(
                "another upkeep of this place is at work", "wait for it to end, then try again"
            ) from None
        with closing_fd(fd):
            yield

    def note(self, row: KeptRow) -> None:
        """Remember how an archive was kept; raise OSError."""
        self.rows[row["name"]] = row
        replace(self._folder / _file(row["name"]), json.dumps(row).encode())

    def forget(self, name: str) -> None:
        """An archive is not to be kept any more."""
        self.rows.pop(name, None)
        with suppress(FileNotFoundError):
            os.unlink(self._folder / _file(name))


def _file(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest() + _SUFFIX


def _row(fields: Any) -> KeptRow:
    """A note as it was written, without the archive's status where another version wrote that;
    raise ValueError for one that is none.
    """
    row = blank("", "")
    if not isinstance(fields, dict) or fields.keys() != row.keys():
        raise ValueError
    if any(
        type(fields[key]) is not type(value) and value is not None for key, value in row.items()
    ):
        raise ValueError
    status = fields["status"]
    if not isinstance(status, dict) or status.keys() != StatusRow.__required_keys__:
        fields["status"] = None
    return cast(KeptRow, fields)

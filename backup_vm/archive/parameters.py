# SPDX-License-Identifier: GPL-2.0-or-later
"""``archive.toml``: what an archive is, and its key slots. Its last line is a checksum of all the
lines before.
"""

import tomllib
from typing import Any, NamedTuple

from backup_vm.archive.damage import text_checksum
from backup_vm.archive.storage import Storage
from backup_vm.errors import DamagedError, NoArchiveError, WrongKeyError
from wire import CHUNK_SIZES, FORMAT, other_format
from wire.chunks import KEY_SIZE, SUITES, Keys
from wire.layout import LAST_TIME
from wire.names import parse_name
from wire.slots import MAX_SLOTS, SLOT_SIZE, open_any

NAME = "archive.toml"
LONGEST_RETENTION = 366 * 86400
"""Seconds. What stays is locked again and again, so that a longer one only makes a mistake last: it
cannot be undone.
"""
_CHECK = "checksum = "
_LONGEST = 1 << 16
"""Bytes: many times what MAX_SLOTS take, and too few for tables so deep that parsing them takes all
memory.
"""


class Parameters(NamedTuple):
    """An archive's parameters. ``master`` is its key, in open mode only."""

    archive: bytes
    label: str
    suite: int
    chunk_size: int
    created: int
    slots: tuple[bytes, ...]
    master: bytes | None
    retention: int = 0
    """Seconds for which files cannot be removed after they were stored; 0: they can be."""

    @property
    def mode(self) -> str:
        """``open`` or ``sealed``."""
        return "sealed" if self.master is None else "open"

    def keys(self, passphrase: bytes | None = None) -> Keys | None:
        """The archive's keys: from a passphrase or recovery key if given, else in open mode only.
        Raise WrongKeyError.

        A passphrase that an archive does not need is an error: whoever writes the store can put an
        open archive with a key of his own in the place of a sealed one, and whoever gives a
        passphrase means a sealed one.
        """
        if self.master is not None:
            if passphrase is not None:
                raise WrongKeyError(
                    f"archive {self.label} says that it is open, so that it takes no passphrase",
                    "if you made it with --open, give no passphrase; if not, somebody has replaced"
                    " your archive",
                )
            return Keys(self.master)
        if passphrase is None:
            return None
        master = open_any(self.slots, passphrase, self.archive)
        if master is not None:
            return Keys(master)
        raise WrongKeyError(
            "this passphrase or recovery key does not open the archive",
            "check it and type it again",
        )

    def save(self, storage: Storage) -> None:
        """Write archive.toml."""
        lines = [
            "# An archive of sparsebak. The format is described in docs/format.md of the project.",
            f"format = {FORMAT}",
            f"suite = {self.suite}",
            f'archive = "{self.archive.hex()}"',
            f'label = "{self.label}"',
            f'mode = "{self.mode}"',
            f"chunk_size = {self.chunk_size}",
            f"created = {self.created}",
            "slots = [" + ", ".join(f'"{slot.hex()}"' for slot in self.slots) + "]",
        ]
        if self.retention:
            lines.append(f"retention = {self.retention}")
        if self.master is not None:
            lines.append(f'key = "{self.master.hex()}"')
        body = "\n".join(lines) + "\n"
        storage.write(
            NAME, f'{body}{_CHECK}"{text_checksum(body.encode())}"\n'.encode(), mode=0o600
        )


def load(storage: Storage) -> Parameters:
    """Read archive.toml; raise NoArchiveError or DamagedError."""
    try:
        raw = storage.read(NAME, _LONGEST)
    except (FileNotFoundError, NotADirectoryError):
        hint = (
            "mount its disk, or name it with --archive or SPARSEBAK_ARCHIVE; or make one: sparsebak"
            " init DIR --label LABEL"
        )
        if storage.describe().startswith("s3://"):
            hint += "; if there was one, and the bucket keeps versions, read it with --as-of TIME"
        raise NoArchiveError(f"there is no archive in {storage.describe()}", hint) from None
    return parse(raw, storage.describe(NAME))


def parse(raw: bytes, place: str) -> Parameters:
    """What an archive.toml says that is at ``place``; raise NoArchiveError or DamagedError."""
    body, _, check = raw.rpartition(_CHECK.encode())
    if check != f'"{text_checksum(body)}"\n'.encode():
        hint = (
            "restore this file from a copy, or write it again from what dom0 knows: sparsebak init"
            " DIR --label LABEL --repair"
        )
        raise DamagedError(f"{place} is damaged: its checksum is wrong", hint)
    try:
        return _parse(place, tomllib.loads(body.decode()))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        # The checksum fits, but whoever can write to the disk can write that, too.
        raise DamagedError(f"{place} is malformed: {error}") from None


def _parse(place: str, fields: dict[str, Any]) -> Parameters:
    if fields["format"] != FORMAT:
        what, hint = other_format(fields["format"])
        raise NoArchiveError(f"{place}: an archive of {what}", hint)
    if fields["suite"] not in SUITES:
        raise NoArchiveError(
            f"{place}: suite {fields['suite']}, which this version does not know",
            "use the version of sparsebak that made the archive, or a newer one",
        )
    if fields["mode"] != ("open" if "key" in fields else "sealed"):
        raise ValueError("its mode and its keys do not go together")
    if not isinstance(fields["slots"], list):
        raise TypeError("its key slots are no list")
    if len(fields["slots"]) > MAX_SLOTS:
        raise ValueError(f"more than {MAX_SLOTS} key slots")
    chunk_size = _number(fields, "chunk_size")
    if chunk_size not in CHUNK_SIZES:
        raise ValueError("impossible chunk size")
    retention = _number(fields, "retention") if "retention" in fields else 0
    if retention > LONGEST_RETENTION:
        raise ValueError("its retention is longer than any")
    return Parameters(
        archive=_bytes(fields["archive"], 16),
        label=parse_name(fields["label"], "label"),
        suite=_number(fields, "suite"),
        chunk_size=chunk_size,
        created=_number(fields, "created"),
        slots=tuple(_bytes(slot, SLOT_SIZE) for slot in fields["slots"]),
        master=_bytes(fields["key"], KEY_SIZE) if "key" in fields else None,
        retention=retention,
    )


def _number(fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if type(value) is not int or not 0 <= value <= LAST_TIME:
        raise ValueError(f"{name} is not a possible number")
    return value


def _bytes(text: str, size: int) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != size:
        raise ValueError(f"{len(value)} bytes where {size} belong")
    return value

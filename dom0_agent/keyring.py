# SPDX-License-Identifier: GPL-2.0-or-later
"""The archives dom0 knows, for reading: label, who may use it, parameters, key slots, master key.

``<state_dir>/archives/<archive id>/`` holds ``archive.json`` and ``key``, owner only. Both are
checked when they are read: a key with one wrong bit seals as well as the right one, and no
passphrase would ever open what it sealed. They are written by ``admin.archives``, which no call
reaches.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from common.durable import UNREADABLE, read_small
from common.existing import is_dir
from dom0_agent.log import ERROR, log
from wire import CHUNK_SIZES, FORMAT, other_format
from wire.chunks import KEY_SIZE, SUITE_BLAKE2B, SUITES, DomainKeys, Keys
from wire.compiled import COMPILED
from wire.layout import Compiled
from wire.messages import MODE_OPEN, MODE_SEALED
from wire.names import parse_name
from wire.status import Code, Refused

_SLOT_SIZE = Compiled(COMPILED["Slot"]).size
"""Of a key slot (wire.slots, which makes and opens them: nothing that a call needs)."""
ADMIN = "dom0"
"""The caller that may use every archive: a call from dom0 itself. qrexec does not let a qube take
this name.
"""


class _Fields(NamedTuple):
    directory: Path
    id: bytes
    label: str
    caller: str
    mode: int
    chunk_size: int
    created: int
    slots: tuple[bytes, ...]
    suite: int = SUITE_BLAKE2B
    key_check: str = ""


class ArchiveKey(_Fields):
    """One archive. ``id`` has 16 bytes; ``mode`` is one of wire.messages' MODE_ numbers, ``suite``
    one of wire.chunks's.

    ``key_check``: digest of the master key, by which a damaged one is noticed; empty until it is
    kept.
    """

    def master(self) -> bytes:
        """The master key; Refused when it is not the one that was kept."""
        try:
            key = read_small(self.directory / "key")
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and error.errno not in UNREADABLE:
                raise
            key = b""
        if len(key) != KEY_SIZE or self.key_check not in ("", digest(key)):
            raise Refused(
                Code.INTERNAL, f"{self.directory / 'key'} is damaged; see docs/recovery.md"
            )
        return key

    def keys(self) -> Keys:
        """The archive's keys; read once."""
        return self._keys

    def domain_keys(self, dedup_domain: bytes) -> DomainKeys:
        """The keys of one of its deduplication domains (16 bytes)."""
        return self.keys().of_domain(dedup_domain, self.suite)

    @cached_property
    def _keys(self) -> Keys:
        return Keys(self.master())


class Keyring:
    """All archives under a state directory. One that was asked for by its id is read once."""

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir / "archives"
        self._asked_for: dict[bytes, ArchiveKey] = {}

    def __iter__(self) -> Iterator[ArchiveKey]:
        for path in self._paths():
            yield load(path)

    def _paths(self) -> list[Path]:
        if not is_dir(self.directory):
            return []
        return sorted(path for path in self.directory.iterdir() if not path.name.startswith("."))

    def readable(self) -> Iterator[ArchiveKey]:
        """All that can be read; of one that is damaged the log says so, and the others do not
        suffer from it.
        """
        for path in self._paths():
            try:
                yield load(path)
            except Refused as refused:
                log(ERROR, str(refused))

    def place(self, archive_id: bytes) -> Path:
        """The directory of an archive of that id."""
        return self.directory / archive_id.hex()

    def _get(self, archive_id: bytes) -> ArchiveKey | None:
        if archive_id not in self._asked_for:
            path = self.place(archive_id)
            if not is_dir(path):
                return None
            self._asked_for[archive_id] = load(path)
        return self._asked_for[archive_id]

    def for_caller(self, archive_id: bytes, caller: str) -> ArchiveKey:
        """The archive of that id if ``caller`` may use it; Refused when it may not, or the archive
        is damaged.
        """
        archive = self._get(archive_id)
        # One that is not there and one that is another's look the same: a caller must not learn
        # which archives there are.
        if archive is None or caller not in (archive.caller, ADMIN):
            raise Refused(
                Code.NO_ARCHIVE,
                f"{caller} asked for archive {archive_id.hex()}, which it may not use",
            )
        return archive

    def find(self, archive_id: bytes) -> ArchiveKey | None:
        """The archive of that id, for dom0's own use; None when there is none, or it is damaged,
        which the log says then.
        """
        try:
            return self._get(archive_id)
        except Refused as refused:
            log(ERROR, str(refused))
            return None

    def by_label(self, label: str) -> ArchiveKey | None:
        """The archive with a label, or None."""
        return next((archive for archive in self.readable() if archive.label == label), None)


def check(fields: dict[str, Any]) -> str:
    """A checksum of what archive.json says, whatever way it is laid out there."""
    return digest(json.dumps(fields, sort_keys=True).encode())


def digest(data: bytes) -> str:
    """Of a key it tells nothing: nobody guesses 256 random bits."""
    return hashlib.blake2b(data, digest_size=16, person=b"sparsebak kept").hexdigest()


def load(directory: Path) -> ArchiveKey:
    """An archive as it was written; Refused when it is damaged, or of another format."""
    try:
        raw = json.loads(read_small(directory / "archive.json"))
        if raw.pop("check", None) != check(raw):
            raise ValueError("its check does not fit")
        number = raw.pop("format", 1)  # format 1 had no number here
        if number != FORMAT:
            what, hint = other_format(number)
            raise Refused(Code.INTERNAL, f"{directory} is an archive of {what}: {hint}")
        slots = tuple(bytes.fromhex(slot) for slot in raw.pop("slots"))
        found = ArchiveKey(
            directory=directory, id=bytes.fromhex(directory.name), slots=slots, **raw
        )
        parse_name(found.label, "label")
        if (
            type(found.caller) is not str
            or type(found.created) is not int
            or found.mode not in (MODE_OPEN, MODE_SEALED)
            or found.suite not in SUITES
            or found.chunk_size not in CHUNK_SIZES
            or any(len(slot) != _SLOT_SIZE for slot in slots)
        ):
            raise ValueError("a value in it is impossible")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Refused(Code.INTERNAL, f"{directory} is damaged: {error}") from None
    return found

"""The archives dom0 knows: label, who may use it, parameters, key slots and the master key.

``<state_dir>/archives/<archive id>/`` holds ``archive.json`` and ``key``, owner only. Both are
checked when they are read: a key with one wrong bit seals as well as the right one, and no
passphrase would ever open what it sealed.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.durable import make_directory, replace, sync_directory, write_synced
from dom0_agent.log import ERROR, WARNING, log
from wire import CHUNK_SIZES, FORMAT, other_format
from wire.chunks import KEY_SIZE, SUITE_BLAKE2B, SUITES, DomainKeys, Keys
from wire.messages import MODE_OPEN, MODE_SEALED
from wire.names import parse_name
from wire.slots import KIND_PASSPHRASE, KIND_RECOVERY, RECOVERY_BYTES, SLOT_SIZE, make_slot
from wire.status import Code, Refused

ADMIN = "dom0"
"""The caller that may use every archive: a call from dom0 itself. qrexec does not let a qube take
this name.
"""


@dataclass(frozen=True)
class Archive:
    """One archive. ``id`` has 16 bytes; ``mode`` is one of wire.messages' MODE_ numbers, ``suite``
    one of wire.chunks's.

    ``key_check``: digest of the master key, by which a damaged one is noticed; empty until it is
    kept.
    """

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

    def master(self) -> bytes:
        """The master key; Refused when it is not the one that was kept."""
        try:
            key = (self.directory / "key").read_bytes()
        except FileNotFoundError:
            key = b""
        if len(key) != KEY_SIZE or self.key_check not in ("", _digest(key)):
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


class Archives:
    """All archives under a state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "archives"

    def __iter__(self) -> Iterator[Archive]:
        for path in self._paths():
            yield _load(path)

    def _paths(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return sorted(p for p in self._directory.iterdir() if not p.name.startswith("."))

    def readable(self) -> Iterator[Archive]:
        """All that can be read; of one that is damaged the log says so, and the others do not
        suffer from it.
        """
        for path in self._paths():
            try:
                yield _load(path)
            except Refused as refused:
                log(ERROR, str(refused))

    def for_caller(self, archive_id: bytes, caller: str) -> Archive:
        """The archive of that id if ``caller`` may use it. An unknown one and a forbidden one look
        the same.
        """
        path = self.place(archive_id)
        archive = _load(path) if path.is_dir() else None
        if archive is None or caller not in (archive.caller, ADMIN):
            raise Refused(
                Code.NO_ARCHIVE,
                f"{caller} asked for archive {archive_id.hex()}, which it may not use",
            )
        return archive

    def by_id(self) -> dict[str, Archive]:
        """All archives by id in hexadecimal, for recovery."""
        return {archive.id.hex(): archive for archive in self.readable()}

    def by_label(self, label: str) -> Archive | None:
        """The archive with a label, or None."""
        return next((archive for archive in self.readable() if archive.label == label), None)

    def add(
        self, label: str, caller: str, suite: int, chunk_size: int, passphrase: bytes | None
    ) -> tuple[Archive, bytes | None]:
        """Make an archive: sealed with a passphrase, open without one. Returns it and its recovery
        key (sealed mode).
        """
        if suite not in SUITES:
            raise ValueError("no such suite")
        if chunk_size not in CHUNK_SIZES:
            raise ValueError("chunk size must be a power of two from 64 KiB to 4 MiB")
        archive_id, master = os.urandom(16), os.urandom(KEY_SIZE)
        slots: list[bytes] = []
        recovery = None
        if passphrase is not None:
            recovery = os.urandom(RECOVERY_BYTES)
            slots.append(make_slot(KIND_PASSPHRASE, passphrase, master, archive_id))
            slots.append(make_slot(KIND_RECOVERY, recovery, master, archive_id))
        archive = Archive(
            directory=self.place(archive_id),
            id=archive_id,
            label=label,
            caller=caller,
            mode=MODE_OPEN if passphrase is None else MODE_SEALED,
            chunk_size=chunk_size,
            created=int(time.time()),
            slots=tuple(slots),
            suite=suite,
        )
        self.adopt(archive, master)
        return archive, recovery

    def place(self, archive_id: bytes) -> Path:
        """The directory of an archive of that id."""
        return self._directory / archive_id.hex()

    def adopt(self, archive: Archive, master: bytes) -> None:
        """Keep an archive, whose directory is its ``place``, and its key; Refused when it is here
        already.
        """
        make_directory(self._directory)
        if archive.directory.exists():
            if is_sound(archive.directory):
                raise Refused(
                    Code.BUSY,
                    f"archive {archive.id.hex()} is known here already; see: sparsebak-agent"
                    " archive list",
                )
            self._set_aside(archive.directory)
        temporary = self._directory / f".{archive.directory.name}.tmp"
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(mode=0o700)
        write_synced(temporary / "key", master)
        kept = dataclasses.replace(archive, key_check=_digest(master))
        write_synced(temporary / "archive.json", _dump(kept))
        sync_directory(temporary)
        os.rename(temporary, archive.directory)
        sync_directory(self._directory)

    def _set_aside(self, damaged: Path) -> None:
        """Make place for an archive that is damaged here; what is left of it stays, under another
        name.
        """
        aside = self._directory / f".{damaged.name}.damaged"
        if aside.exists():
            shutil.rmtree(aside)
        os.rename(damaged, aside)
        log(WARNING, f"{damaged} is damaged; set aside as {aside.name}")

    def set_slots(self, archive: Archive, slots: tuple[bytes, ...]) -> None:
        """Keep other key slots for an archive; the file's replacement is the commit point."""
        replace(
            archive.directory / "archive.json", _dump(dataclasses.replace(archive, slots=slots))
        )

    def remove(self, archive: Archive) -> None:
        """Forget an archive and its key."""
        gone = self._directory / f".{archive.id.hex()}.gone"
        if gone.exists():  # of a removal that was interrupted
            shutil.rmtree(gone)
        os.rename(archive.directory, gone)
        sync_directory(self._directory)
        shutil.rmtree(gone)


def _dump(archive: Archive) -> bytes:
    fields = {
        "format": FORMAT,
        "label": archive.label,
        "caller": archive.caller,
        "mode": archive.mode,
        "suite": archive.suite,
        "chunk_size": archive.chunk_size,
        "created": archive.created,
        "slots": [slot.hex() for slot in archive.slots],
        "key_check": archive.key_check,
    }
    return json.dumps({"check": _check(fields), **fields}, indent=1).encode()


def _check(fields: dict[str, Any]) -> str:
    return _digest(json.dumps(fields, sort_keys=True).encode())


def _digest(data: bytes) -> str:
    """Of a key it tells nothing: nobody guesses 256 random bits."""
    return hashlib.blake2b(data, digest_size=16, person=b"sparsebak kept").hexdigest()


def is_sound(directory: Path) -> bool:
    """Whether an archive can be read, and its key."""
    try:
        _load(directory).master()
    except Refused:
        return False
    return True


def _load(directory: Path) -> Archive:
    """An archive as it was written; Refused when it is damaged, or of another format."""
    try:
        raw = json.loads((directory / "archive.json").read_bytes())
        if raw.pop("check", None) != _check(raw):
            raise ValueError("its check does not fit")
        number = raw.pop("format", 1)  # format 1 had no number here
        if number != FORMAT:
            what, hint = other_format(number)
            raise Refused(Code.INTERNAL, f"{directory} is an archive of {what}: {hint}")
        slots = tuple(bytes.fromhex(slot) for slot in raw.pop("slots"))
        found = Archive(directory=directory, id=bytes.fromhex(directory.name), slots=slots, **raw)
        parse_name(found.label, "label")
        if (
            type(found.caller) is not str
            or type(found.created) is not int
            or found.mode not in (MODE_OPEN, MODE_SEALED)
            or found.suite not in SUITES
            or found.chunk_size not in CHUNK_SIZES
            or any(len(slot) != SLOT_SIZE for slot in slots)
        ):
            raise ValueError("a value in it is impossible")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Refused(Code.INTERNAL, f"{directory} is damaged: {error}") from None
    return found

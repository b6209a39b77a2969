# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0's administrator does to archives: make one, keep one and its key, give it other key
slots, forget it. Calls only read what this writes (``dom0_agent.keyring``).
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.durable import (
    Busy,
    closing_fd,
    lock_fd,
    make_directory,
    replace,
    sync_directory,
    write_synced,
)
from common.existing import exists, is_dir
from dom0_agent.keyring import ArchiveKey, Keyring, check, digest, load
from dom0_agent.log import WARNING, log
from dom0_agent.tracking.state import PATIENCE
from wire import CHUNK_SIZES, FORMAT
from wire.chunks import KEY_SIZE, SUITES
from wire.messages import MODE_OPEN, MODE_SEALED
from wire.slots import KIND_PASSPHRASE, KIND_RECOVERY, RECOVERY_BYTES, make_slot
from wire.status import Code, Refused


def add(
    keyring: Keyring,
    label: str,
    caller: str,
    suite: int,
    chunk_size: int,
    passphrase: bytes | None,
) -> tuple[ArchiveKey, bytes | None]:
    """Make an archive: sealed with a passphrase, open without one. Returns it and its recovery key
    (sealed mode).
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
    archive = ArchiveKey(
        directory=keyring.place(archive_id),
        id=archive_id,
        label=label,
        caller=caller,
        mode=MODE_OPEN if passphrase is None else MODE_SEALED,
        chunk_size=chunk_size,
        created=int(time.time()),
        slots=tuple(slots),
        suite=suite,
    )
    keep(keyring, archive, master)
    return archive, recovery


def keep(keyring: Keyring, archive: ArchiveKey, master: bytes) -> None:
    """Keep an archive, whose directory is its place in the keyring, and its key; Refused when it is
    here already.
    """
    make_directory(keyring.directory)
    with _alone(keyring.directory):
        if exists(archive.directory):
            if is_sound(archive.directory):
                raise Refused(
                    Code.BUSY,
                    f"archive {archive.id.hex()} is known here already; see: sparsebak-agent"
                    " archive list",
                )
            _set_aside(archive.directory)
        # A name with a dot is no archive to the keyring, so that the rename is the commit point.
        temporary = keyring.directory / f".{archive.directory.name}.tmp"
        kept = archive._replace(key_check=digest(master))
        try:
            temporary.mkdir(mode=0o700)
            write_synced(temporary / "key", master)
            write_synced(temporary / "archive.json", dump(kept))
            sync_directory(temporary)
            os.rename(temporary, archive.directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_directory(keyring.directory)


def sweep(keyring: Keyring) -> None:
    """Remove what was left, with a key in it, where an archive's making or removal was killed. Not
    while somebody makes or removes one.
    """
    if is_dir(keyring.directory):
        with suppress(Refused), _alone(keyring.directory, patience=0):
            pass


@contextmanager
def _alone(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Be the only one that makes or removes archives; what one that was killed left is removed.

    A new archive's id is never drawn again, so that nobody would come upon its folder by chance.
    """
    try:
        fd = lock_fd(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), False, patience)
    except Busy:
        raise Refused(Code.BUSY, f"{folder} is busy with another operation") from None
    with closing_fd(fd):
        for path in sorted(folder.iterdir()):
            if _LEFT.fullmatch(path.name):
                shutil.rmtree(path)
        yield


_LEFT = re.compile(r"\.[0-9a-f]{32}\.(tmp|gone)")


def _set_aside(damaged: Path) -> None:
    """Make place for an archive that is damaged here; what is left of it stays, under another
    name.
    """
    aside = damaged.with_name(f".{damaged.name}.damaged")
    if exists(aside):
        shutil.rmtree(aside)
    os.rename(damaged, aside)
    log(WARNING, f"{damaged} is damaged; set aside as {aside.name}")


def set_slots(archive: ArchiveKey, slots: tuple[bytes, ...]) -> None:
    """Keep other key slots for an archive; the file's replacement is the commit point. Refused
    where they are not those of ``archive`` any more: a passphrase may be long in coming, and what
    was removed meanwhile must not come back with it.
    """
    with _alone(archive.directory.parent):
        now = load(archive.directory)
        if now.slots != archive.slots:
            raise Refused(
                Code.BUSY,
                f"the key slots of {archive.label} were changed meanwhile by another command;"
                " nothing was changed by this one, run it again",
            )
        replace(archive.directory / "archive.json", dump(now._replace(slots=slots)))


def set_caller(archive: ArchiveKey, caller: str) -> None:
    """Let another qube use an archive, and the one before no more; the file's replacement is the
    commit point.
    """
    with _alone(archive.directory.parent):
        now = load(archive.directory)
        replace(archive.directory / "archive.json", dump(now._replace(caller=caller)))


def remove(archive: ArchiveKey) -> None:
    """Forget an archive and its key."""
    gone = archive.directory.with_name(f".{archive.directory.name}.gone")
    with _alone(gone.parent):
        os.rename(archive.directory, gone)
        sync_directory(gone.parent)
        shutil.rmtree(gone)


def dump(archive: ArchiveKey) -> bytes:
    """What archive.json holds; the keyring's ``load`` undoes it."""
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
    return json.dumps({"check": check(fields), **fields}, indent=1).encode()


def is_sound(directory: Path) -> bool:
    """Whether an archive can be read, and its key."""
    try:
        load(directory).master()
    except Refused:
        return False
    return True

# SPDX-License-Identifier: GPL-2.0-or-later
"""A pack against its own checksums, and against where the catalog says that chunks are."""

from collections.abc import Mapping
from contextlib import closing

import xxhash

from backup_vm.archive import packs
from backup_vm.archive.format import ENTRY, ENTRY_SIZE, PACK_HEAD_SIZE
from backup_vm.archive.packs import Packed, checksum
from backup_vm.archive.parameters import Parameters
from backup_vm.archive.storage import Reader, Storage
from backup_vm.errors import DamagedError
from backup_vm.rate import Rate


class Checked:
    """What was found. ``problem``: what is wrong with its index; ``bad``: chunks that are not what
    was written; ``gaps``: offsets between chunks where there is something; ``wrong``: offsets
    where the catalog has a chunk and the pack another or none.
    """

    def __init__(self) -> None:
        self.problem = ""
        self.bad: list[Packed] = []
        self.gaps: list[int] = []
        self.wrong: list[int] = []

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not (self.problem or self.bad or self.gaps or self.wrong)


def check(
    storage: Storage, name: str, parameters: Parameters, live: Mapping[int, bytes]
) -> Checked:
    """Look at all of a pack. ``live``: ids of the chunks that are needed, by offset; others may be
    holes. Raises DamagedError and OSError where it cannot be read.
    """
    done = Checked()
    try:
        entries = packs.read_index(storage, name, parameters.archive)
    except DamagedError as error:
        done.problem = str(error)
        entries = list(packs.scan(storage, name, parameters.chunk_size))
    found = {entry.offset: entry for entry in entries}
    done.wrong = [
        offset
        for offset, chunk_id in live.items()
        if offset not in found or found[offset].id != chunk_id
    ]
    with closing(storage.reader(name)) as reader:
        expected = PACK_HEAD_SIZE
        for entry in entries:
            if not _sound(reader, entry, entry.offset in live, storage.rate):
                done.bad.append(entry)
            if entry.offset != expected + ENTRY_SIZE:
                done.gaps.append(expected)
            expected = entry.offset + entry.length
    return done


def _sound(reader: Reader, entry: Packed, live: bool, rate: Rate) -> bool:
    """Whether a chunk and the entry before it are as they were written; what is not live may be a
    hole instead.
    """
    rate.spend(entry.length)
    raw = reader.read(entry.offset - ENTRY_SIZE, ENTRY_SIZE + entry.length)
    head = ENTRY.pack(entry.length, entry.id, entry.checksum)
    sealed = memoryview(raw)[ENTRY_SIZE:]
    if raw[:ENTRY_SIZE] != head or len(sealed) != entry.length:
        return False
    digest = xxhash.xxh3_128_digest(sealed)
    return digest == entry.checksum or (not live and digest == checksum(bytes(entry.length)))

# SPDX-License-Identifier: GPL-2.0-or-later
import os
import tracemalloc
from pathlib import Path

import pytest

from backup_vm.archive.packs import NewPack, Packed, PackReader, read_index, scan
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import DamagedError

ARCHIVE = b"a" * 16


@pytest.fixture
def pack(tmp_path: Path) -> tuple[LocalStorage, str, dict[bytes, tuple[int, bytes]]]:
    storage = LocalStorage(tmp_path)
    new, held = NewPack(storage, ARCHIVE), {}
    for number in range(20):
        sealed = os.urandom(100 + number)
        held[bytes([number]) * 32] = (new.add(bytes([number]) * 32, sealed), sealed)
    new.finish()
    return storage, new.name, held


def test_chunks_are_read_back_by_place_and_by_index(
    pack: tuple[LocalStorage, str, dict[bytes, tuple[int, bytes]]],
) -> None:
    storage, name, held = pack
    index = read_index(storage, name, ARCHIVE)
    assert [(e.id, e.offset, e.length) for e in index] == [
        (i, at, len(sealed)) for i, (at, sealed) in held.items()
    ]
    with PackReader(storage) as reader:
        for entry in index:
            assert reader.read(name, entry.id, entry.offset, entry.length) == held[entry.id][1]
            with pytest.raises(DamagedError):
                reader.read(name, b"?" * 32, entry.offset, entry.length)


def test_without_its_index_a_pack_is_scanned(
    pack: tuple[LocalStorage, str, dict[bytes, tuple[int, bytes]]],
) -> None:
    storage, name, held = pack
    index = read_index(storage, name, ARCHIVE)
    os.truncate(storage.local(name), storage.size(name) - 50)
    with pytest.raises(DamagedError):
        read_index(storage, name, ARCHIVE)
    assert list(scan(storage, name, 65536))[: len(held)] == index


def test_of_a_file_that_is_larger_than_any_pack_little_is_read(
    pack: tuple[LocalStorage, str, dict[bytes, tuple[int, bytes]]],
) -> None:
    """Whoever can write to a disk can make one of many TiB that takes up nothing."""
    storage, name, held = pack
    os.truncate(storage.local(name), 1 << 35)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError):
            read_index(storage, name, ARCHIVE)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert len(list(scan(storage, name, 65536))) == len(held)


def test_a_hole_loses_one_chunk_and_no_other(
    pack: tuple[LocalStorage, str, dict[bytes, tuple[int, bytes]]],
) -> None:
    storage, name, held = pack
    gone = read_index(storage, name, ARCHIVE)[5]
    assert storage.punch(name, [(gone.offset, gone.length)])
    with PackReader(storage) as reader:
        sound = [entry for entry in read_index(storage, name, ARCHIVE) if reader.sound(name, entry)]
    assert (
        len(sound) == len(held) - 1
        and Packed(gone.id, gone.offset, gone.length, gone.checksum) not in sound
    )


def test_a_pack_of_another_archive_is_refused(
    pack: tuple[LocalStorage, str, dict[bytes, tuple[int, bytes]]],
) -> None:
    storage, name, _ = pack
    with pytest.raises(DamagedError):
        read_index(storage, name, b"b" * 16)


def test_an_abandoned_pack_leaves_nothing(tmp_path: Path) -> None:
    new = NewPack(LocalStorage(tmp_path), ARCHIVE)
    new.add(b"x" * 32, b"sealed")
    new.abandon()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

# SPDX-License-Identifier: GPL-2.0-or-later
import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.partial import Partial
from backup_vm.archive.storage.local import LocalStorage
from tests.conftest import QuickFolders
from wire.messages import Offer

OFFER = Offer(b"v" * 16, b"s" * 16, bytes(16), 1, 2, 1 << 40, 65536, 4, 1)
groups = st.lists(st.lists(st.integers(0, 9), unique=True).map(sorted), max_size=5)


def write(storage: LocalStorage, parts: list[list[int]]) -> tuple[str, list[int]]:
    partial, numbers = Partial.create(storage, OFFER), []
    for at, part in enumerate(parts):
        mine = [10 * at + n for n in part]
        partial.append(10 * at + 10, [(n, bytes([n % 256]) * 32) for n in mine])
        numbers += mine
    partial.close()
    return partial.name, numbers


def read(partial: Partial) -> list[int]:
    raw = b"".join(partial.numbers())
    return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]


@given(groups)
def test_what_was_stored_is_read_back(quick_folders: QuickFolders, parts: list[list[int]]) -> None:
    storage = LocalStorage(quick_folders.mktemp("partial"))
    name, numbers = write(storage, parts)
    partial = Partial.load(storage, name)
    assert partial is not None and partial.offer == OFFER
    assert (read(partial), partial.count, partial.position) == (
        numbers,
        len(numbers),
        10 * len(parts),
    )
    assert b"".join(partial.ids()) == b"".join(bytes([n % 256]) * 32 for n in numbers)
    partial.close()


@given(groups, st.data())
def test_damage_ends_it_before_the_damage(
    quick_folders: QuickFolders, parts: list[list[int]], data: st.DataObject
) -> None:
    storage = LocalStorage(quick_folders.mktemp("partial"))
    name, numbers = write(storage, parts)
    path: Path = storage.local(name)
    raw = path.read_bytes()
    at = data.draw(st.integers(Offer.length(), len(raw)))
    path.write_bytes(
        data.draw(
            st.sampled_from(
                [raw[:at], raw[:at] + bytes(b ^ 1 for b in raw[at : at + 1]) + raw[at + 1 :]]
            )
        )
    )
    partial = Partial.load(storage, name)
    assert partial is not None
    assert read(partial) == [n for n in numbers if n < partial.position]
    partial.close()


@pytest.mark.parametrize("room", [0, 1, 23, 24, 40, 90])
def test_a_write_that_fails_leaves_it_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """The disk takes so many bytes more, then none."""
    storage = LocalStorage(tmp_path)
    partial, left, pwrite = Partial.create(storage, OFFER), [room], os.pwrite
    partial.append(5, [(1, b"a" * 32)])

    def filling(fd: int, data: memoryview, offset: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "full")
        taken = pwrite(fd, data[: left[0]], offset)
        left[0] -= taken
        return taken

    monkeypatch.setattr(os, "pwrite", filling)
    with pytest.raises(OSError, match="full"):
        partial.append(9, [(7, b"b" * 32), (8, b"c" * 32)])
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert (partial.position, partial.count, read(partial)) == (5, 1, [1])
    partial.append(9, [(8, b"c" * 32)])
    partial.close()
    again = Partial.load(storage, partial.name)
    assert again is not None and (again.position, read(again)) == (9, [1, 8])
    again.close()


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    storage = LocalStorage(tmp_path)
    name, numbers = write(storage, [[1, 2], [], [3]])
    partial = Partial.load(storage, name)
    assert partial is not None and read(partial) == numbers and partial.position == 30
    partial.close()


@given(groups, st.sets(st.integers(0, 50)))
def test_it_goes_back_to_before_the_first_chunk_that_is_not_stored(
    quick_folders: QuickFolders, parts: list[list[int]], stored: set[int]
) -> None:
    folder = quick_folders.mktemp("partial")
    storage, catalog = LocalStorage(folder), ChunkCatalog.create(folder / "c.sqlite", bytes(16))
    name, numbers = write(storage, parts)
    number = catalog.add_pack("packs/00/x.pack", 1)
    catalog.add_all(number, [(bytes([n]) * 32, n, 1) for n in stored | {0}])
    partial = Partial.load(storage, name)
    assert partial is not None
    partial.keep_known(catalog)
    sound = 0
    while sound < len(parts) and {10 * sound + n for n in parts[sound]} <= stored | {0}:
        sound += 1
    assert partial.position == 10 * sound
    assert read(partial) == [n for n in numbers if n < 10 * sound] and partial.count == len(
        read(partial)
    )
    partial.append(99, [(98, b"x" * 32)])
    partial.close()
    again = Partial.load(storage, name)
    assert again is not None and again.position == 99 and again.count == len(read(again))
    again.close()
    catalog.close()

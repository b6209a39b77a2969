# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalog made in one go has what chunks that were added one by one would have."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.catalog_file import folder_aside
from backup_vm.archive.gathering import Gathering
from backup_vm.archive.packs import Packed
from tests.conftest import QuickFolders

chunk = st.integers(1, 12).map(lambda number: bytes([number * 19 % 256]) * 31 + bytes([number]))


@given(
    st.lists(st.lists(chunk, max_size=8), max_size=5),
    st.lists(st.lists(chunk, max_size=10), max_size=3),
    st.sampled_from([2, 5, 1 << 18]),
    st.integers(0, 5),
)
def test_in_one_go_or_one_by_one(
    quick_folders: QuickFolders,
    packs: list[list[bytes]],
    listed: list[list[bytes]],
    at_once: int,
    cut_off: int,
) -> None:
    """In memory, or in a database; and by a run that is cut off, and resumed by another one."""
    folder: Path = quick_folders.mktemp("catalogs")
    names = [f"packs/00/{at}.pack" for at in range(len(packs))]
    chunks = [[Packed(one, at, 7, b"") for at, one in enumerate(ids)] for ids in packs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backup_vm.archive.gathering.AT_ONCE", at_once)
        gathering = Gathering(folder / "gathered.sqlite", bytes(16))
        for name, pack in list(zip(names, chunks, strict=True))[:cut_off]:
            gathering.add_pack(name, 7, pack)
        if cut_off < len(names):
            gathering.close()
            gathering = Gathering(folder / "gathered.sqlite", bytes(16))
            resumed = gathering.resume(dict.fromkeys(names, 7))
            assert resumed == (sum(map(len, packs[:cut_off])) >= at_once)
        for name, pack in zip(names, chunks, strict=True):
            if name not in gathering.packs:
                gathering.add_pack(name, 7, pack)
        gathering.keep()
        for number, ids in enumerate(listed):
            column = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)
            gathering.add_listed(number, column)
        numbers = {number: name for name, (number, _) in gathering.packs.items()}
        parts = list(gathering.parts(numbers))
        gathering.close()
    # the model
    where = sorted((one.id, at, one.offset) for at, pack in enumerate(chunks) for one in pack)
    first = {chunk_id: (at, offset) for chunk_id, at, offset in reversed(where)}
    rows = [(row, used) for part in parts for row, used in zip(part[0], part[1], strict=True)]
    every = [*(row for row, _ in rows), *(row for part in parts for row in part.twice)]
    assert [row[0] for row, _ in rows] == sorted(first)
    there = [(i, names.index(numbers[pack]), offset) for i, pack, offset, _ in every]
    assert sorted(there) == where and all(row[3] == 7 for row in every)
    assert {row[0] for row, used in rows if used} == first.keys() & {
        i for one in listed for i in one
    }
    lacking = {n: sum(i not in first for i in ids) for n, ids in enumerate(listed)}
    assert {n: sum(part.lacking.get(n, 0) for part in parts) for n in lacking} == lacking


def test_ids_that_begin_alike_are_not_taken_for_one_another(tmp_path: Path) -> None:
    ids = [bytes(8) + bytes([number]) * 24 for number in (3, 1, 2)]
    gathering = Gathering(tmp_path / "gathered.sqlite", bytes(16))
    gathering.add_pack("packs/00/a.pack", 7, [Packed(one, 9, 7, b"") for one in ids[:2]])
    gathering.add_listed(0, np.frombuffer(b"".join(ids[1:]), np.uint8).reshape(-1, 32))
    (part,) = gathering.parts([1])
    assert [row[0] for row in part.rows] == sorted(ids[:2])
    assert part.listed == [True, False] and part.lacking == {0: 1} and not part.twice


def test_filled_in_one_go_it_can_be_changed_like_any(tmp_path: Path) -> None:
    catalog = ChunkCatalog.create(tmp_path / "catalog.sqlite", bytes(16))
    catalog.begin()
    pack = catalog.add_pack("packs/00/a.pack", 7, 5)
    assert pack == 5
    ids = [bytes([number]) * 32 for number in range(1, 9)]
    catalog.fill(
        [
            [(one, pack, at, 7) for at, one in enumerate(ids[:4])],
            [(one, pack, at, 7) for at, one in enumerate(ids[4:], 4)],
        ]
    )
    catalog.commit()
    assert catalog.in_pack(pack) == dict(enumerate(ids))
    assert catalog.drop_unreferenced([ids[:2], ids[2:3]]) == (5, True)
    assert catalog.count() == (3, 21)
    assert catalog.packs_with_freed() == [] and catalog.whole()
    catalog.close()


def test_a_catalog_aside_is_where_large_files_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sqlite", "general"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path / "sqlite"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "general"))
    for expected in (str(tmp_path / "sqlite"), str(tmp_path / "general"), "/var/tmp"):
        with folder_aside() as folder:
            assert str(Path(folder).parent) == expected
        assert not Path(folder).exists()
        monkeypatch.delenv("SQLITE_TMPDIR" if "sqlite" in expected else "TMPDIR", raising=False)


def test_several_threads_look_for_places(tmp_path: Path) -> None:
    """A connection keeps its statements: two threads that shared one got errors, or too little."""
    catalog = ChunkCatalog.create(tmp_path / "catalog.sqlite", bytes(16))
    pack = catalog.add_pack("packs/aa/x.pack", 99)
    ids = [number.to_bytes(32, "big") for number in range(600)]
    catalog.add_all(pack, [(chunk_id, at * 99, 98) for at, chunk_id in enumerate(ids)])

    def look(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(150):
            wanted = mine.sample(ids, 3)
            found = catalog.places(wanted)
            assert found.keys() == set(wanted)
            assert all(place.offset == ids.index(i) * 99 for i, place in found.items())

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(look, range(8)))
    finally:
        sys.setswitchinterval(before)
        catalog.close()

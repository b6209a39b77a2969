# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalog made in one go has what chunks that were added one by one would have."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive.catalog import ChunkCatalog
from backup_vm.archive.catalog_file import folder_aside

chunk = st.integers(0, 12).map(lambda number: bytes([number * 19 % 256]) * 32)


@given(st.lists(st.lists(chunk, max_size=8), max_size=5), st.lists(chunk, max_size=10))
def test_in_one_go_or_one_by_one(
    tmp_path_factory: pytest.TempPathFactory,
    packs: list[list[bytes]],
    references: list[bytes],
) -> None:
    folder: Path = tmp_path_factory.mktemp("catalogs")
    gathered = ChunkCatalog.create(folder / "gathered.sqlite", bytes(16))
    gathered.begin()
    first: dict[bytes, tuple[int, int]] = {}
    chunks, twice = [], set()
    for at, ids in enumerate(packs):
        number = gathered.add_pack(f"packs/00/{at}.pack", 7)
        chunks += [(chunk_id, number, offset, 7) for offset, chunk_id in enumerate(ids)]
        for offset, chunk_id in enumerate(ids):
            if first.setdefault(chunk_id, (number, offset)) != (number, offset):
                twice.add((chunk_id, number, offset, 7))
    told = gathered.fill(iter(chunks))
    assert set(told) == twice and len(told) == len(twice)
    gathered.commit()
    held = {
        (chunk_id, number, offset)
        for number in gathered.packs()
        for offset, chunk_id in gathered.in_pack(number).items()
    }
    assert held == {(chunk_id, *place) for chunk_id, place in first.items()}
    dead = len(first.keys() - set(references))
    assert gathered.drop_unreferenced([references[:4], references[4:]]) == dead
    assert gathered.count() == (len(first) - dead, (len(first) - dead) * 7)
    assert gathered.packs_with_freed() == [] and gathered.whole()
    gathered.close()


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

# SPDX-License-Identifier: GPL-2.0-or-later
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.tracking.chunk_ids import CommittedIds, IdsDamaged, KnownIds
from wire.chunks import ZERO_ID, Keys
from wire.merkle import PAGE_IDS, Tree

TREE = Tree(Keys(b"t" * 32).of_domain(bytes(16), 1))
one_id = st.integers(0, 3).map(lambda n: bytes([n]) * 32)
step = st.tuples(
    st.booleans(),
    st.integers(0, 2 * PAGE_IDS + 5),
    st.dictionaries(st.integers(0, 2 * PAGE_IDS + 4), one_id),
)


def plain_root(model: list[bytes]) -> bytes:
    pages = [
        TREE.page(b"".join(model[at : at + PAGE_IDS])) for at in range(0, len(model), PAGE_IDS)
    ]
    return TREE.root(len(model), 1, pages)


@given(st.lists(step, max_size=4))
def test_roots_and_ids_follow_a_plain_model(
    tmp_path_factory: object, steps: list[tuple[bool, int, dict[int, bytes]]]
) -> None:
    folder: Path = tmp_path_factory.mktemp("ids")  # type: ignore[attr-defined]
    model: list[bytes] = []
    length, root = 0, TREE.root(0, 1, [])
    for full, chunks, changes in steps:
        entries = sorted(
            (number, chunk_id) for number, chunk_id in changes.items() if number < chunks
        )
        model = ([] if full else model[:chunks]) + [ZERO_ID] * (
            chunks - (0 if full else min(len(model), chunks))
        )
        for number, chunk_id in entries:
            model[number] = chunk_id
        with CommittedIds(folder / "ids", TREE) as ids:
            assert full or ids.prove(length, 1, root)
            pages = b"".join(ids.digests(entries, full, chunks))
            length, root = chunks, TREE.root(chunks, 1, [pages])
            assert root == plain_root(model)
            assert ids.apply(entries, full, chunks, pages) == pages
        with CommittedIds(folder / "ids", TREE) as ids:  # once more, as after a crash
            assert ids.apply(entries, full, chunks) == pages
        with CommittedIds(folder / "ids", TREE) as ids:
            assert ids.prove(length, 1, root)
            known = KnownIds(ids.page)
            assert ids.count == chunks and [known.of(number) for number in range(chunks)] == model


def made(path: Path, chunks: int) -> bytes:
    """Ids of so many chunks; returns their root."""
    entries = [(number, b"x" * 32) for number in range(chunks)]
    with CommittedIds(path, TREE) as ids:
        pages = b"".join(ids.digests(entries, True, chunks))
        ids.apply(entries, True, chunks, pages)
    return TREE.root(chunks, 1, [pages])


def test_lost_or_damaged_pages_are_made_again_and_proven(tmp_path: Path) -> None:
    chunks = 2 * PAGE_IDS + 7
    root = made(tmp_path / "ids", chunks)
    pages = tmp_path / "ids.pages"
    whole = pages.read_bytes()
    for damaged in (whole[:-1], whole + b"x", b"", bytes([whole[0] ^ 1]) + whole[1:], None):
        pages.unlink() if damaged is None else pages.write_bytes(damaged)
        with CommittedIds(tmp_path / "ids", TREE) as ids:
            assert ids.prove(chunks, 1, root)
            assert b"".join(ids.digests([], False, chunks)) == whole


def test_neither_of_the_two_is_waited_for(tmp_path: Path) -> None:
    """A FIFO, as a damaged file system may show it, and digests without end."""
    path, pages = tmp_path / "ids", tmp_path / "ids.pages"
    root = made(path, PAGE_IDS + 1)
    pages.unlink()
    os.mkfifo(pages)
    with CommittedIds(path, TREE) as ids:
        assert ids.prove(PAGE_IDS + 1, 1, root)
    pages.unlink()
    pages.symlink_to("/dev/zero")
    with CommittedIds(path, TREE) as ids:
        assert ids.prove(PAGE_IDS + 1, 1, root)
    path.unlink()
    os.mkfifo(path)
    with CommittedIds(path, TREE) as ids:
        assert not ids.prove(PAGE_IDS + 1, 1, root)


def test_ids_that_are_not_those_of_the_root_are_not_used(tmp_path: Path) -> None:
    chunks = 2 * PAGE_IDS + 7
    root = made(tmp_path / "ids", chunks)
    with open(tmp_path / "ids", "r+b") as file:
        file.seek(PAGE_IDS * 32 + 5)
        file.write(bytes(32))
    with CommittedIds(tmp_path / "ids", TREE) as ids:
        # By the digests kept: each page is checked when it is read.
        assert ids.prove(chunks, 1, root)
        ids.page(0)
        with pytest.raises(IdsDamaged):
            ids.page(1)
        with pytest.raises(IdsDamaged):
            list(ids.digests([(PAGE_IDS, b"y" * 32)], False, chunks))
    (tmp_path / "ids.pages").unlink()
    (tmp_path / "ids.pages").mkdir()  # cannot be read, as a bad sector cannot
    with CommittedIds(tmp_path / "ids", TREE) as ids:
        assert not ids.prove(chunks, 1, root)
        assert not ids.prove(chunks + 1, 1, root)

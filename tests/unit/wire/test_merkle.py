# SPDX-License-Identifier: GPL-2.0-or-later
from hypothesis import given
from hypothesis import strategies as st

from wire.chunks import Keys
from wire.merkle import PAGE_BYTES, PAGE_IDS, Tree, chunk_count, page_count

KEYS = Keys(b"k" * 32)
TREE = Tree(KEYS.of_domain(bytes(16), 1))


def test_counts_round_up() -> None:
    assert [chunk_count(size, 10) for size in (0, 1, 10, 11)] == [0, 1, 1, 2]
    assert [page_count(chunks) for chunks in (0, 1, PAGE_IDS, PAGE_IDS + 1)] == [0, 1, 1, 2]


@given(st.binary(max_size=320))
def test_a_short_page_counts_as_filled_with_zeros(ids: bytes) -> None:
    ids = ids[: len(ids) // 32 * 32]
    assert TREE.page(ids) == TREE.page(ids.ljust(PAGE_BYTES, b"\0"))


def test_the_root_depends_on_everything() -> None:
    pages = [TREE.page(b"a" * 32), TREE.page(b"b" * 32)]
    roots = {
        TREE.root(100, 10, pages),
        TREE.root(101, 10, pages),
        TREE.root(100, 20, pages),
        TREE.root(100, 10, pages[::-1]),
        TREE.root(100, 10, pages[:1]),
        Tree(KEYS.of_domain(b"o" * 16, 1)).root(100, 10, pages),
        Tree(Keys(b"o" * 32).of_domain(bytes(16), 1)).root(100, 10, pages),
    }
    assert len(roots) == 7

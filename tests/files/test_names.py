# SPDX-License-Identifier: GPL-2.0-or-later
"""Indexes of names, on trees that are made up: what they say is what there is, and of another
session, damaged or made by others they say nothing.
"""

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_vm.archive.name_index import NO_SEGMENT
from backup_vm.archive.names_format import LONGEST_ROWS, NamesRows, RowsHead, SegmentHead
from backup_vm.files import names, names_maker
from backup_vm.files.names import (
    About,
    Link,
    Row,
    Sealing,
    Unusable,
    different,
    merged,
    order,
    rows_of,
)
from backup_vm.files.names_maker import Made, Packer
from backup_vm.jobs.finding import between_zeros
from wire.chunks import Keys, seal_bytes
from wire.declared import declaration

SESSION = bytes(range(16))
FOLDER = stat.S_IFDIR | 0o755
Tree = dict[bytes, About]

NUMBER = st.integers(0, (1 << 32) - 1)
TIME = st.integers(-(1 << 64), (1 << 65) - 1)
ABOUTS = st.builds(
    About,
    st.sampled_from([stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o600]),
    *[NUMBER] * 5,
    st.integers(0, (1 << 63) - 1),
    TIME,
    TIME,
    st.integers(0, (1 << 128) - 1),
)
NAME = st.one_of(
    st.sampled_from([b"a", b"b", b"a.b", b"a-", b"\xff", b"ab"]),
    st.binary(min_size=1, max_size=8).filter(lambda name: not set(name) & {0, ord("/")}),
)
PATHS = st.dictionaries(st.lists(NAME, min_size=1, max_size=4).map(tuple), ABOUTS, max_size=12)


def made_of(files: dict[tuple[bytes, ...], About]) -> Tree:
    """A tree: what is below a path makes it a folder."""
    tree = {b"/".join(path): about for path, about in files.items()}
    for path in files:
        for end in range(1, len(path)):
            tree[b"/".join(path[:end])] = About(FOLDER, 2, end, 0, 0, 0, 0, 0, 0, end)
    return tree


TREES = PATHS.map(made_of)


def rows(tree: Tree) -> Iterator[Row]:
    return (Row(path, tree[path]) for path in sorted(tree, key=order))


def sealing(seed: int = 0) -> Sealing:
    domain = Keys(bytes([seed]) * 32).of_domain(bytes(16), 1)
    return Sealing.of(bytes(16), bytes(16), domain)


def segment(
    tree: Tree, base: bytes = NO_SEGMENT, links: list[Link] | None = None, session: bytes = SESSION
) -> Made:
    made = Made(sealing(), session, os.urandom(16), base, io.BytesIO())
    for row in different(merged(links or [], sealing()), rows(tree)):
        made.packer.add(*row)
    made.finish(0, "", True, 0)
    return made


@given(TREES)
def test_a_block_says_what_it_was_made_of(tree: Tree) -> None:
    blocks: list[bytes] = []
    packer = Packer(blocks.append)
    for path, about in rows(tree):
        packer.add(path, about)
    packer.finish()
    found = [row for block in blocks for row in rows_of(names._expanded(block))]
    assert found == list(rows(tree)) and packer.rows == len(tree)
    for block in blocks:  # as it is declared
        declared = declaration(NamesRows).parse(names._expanded(block))
        assert list(declared.names.split(b"\0"))[:-1] and declared.head.count == len(declared.what)


@settings(max_examples=30)
@given(st.lists(TREES, min_size=1, max_size=4))
def test_a_chain_of_segments_leads_to_each_tree(trees: list[Tree]) -> None:
    links: list[Link] = []
    for tree in trees:
        made = segment(tree, links[-1].head.id if links else NO_SEGMENT, links)
        links.append(made.link())
        assert list(merged(links, sealing())) == list(rows(tree))


@given(TREES, st.data())
def test_large_blocks_are_many_and_each_stands_alone(tree: Tree, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names_maker, "_FULL", data.draw(st.integers(1, 300)))
        made = segment(tree)
    found = [list(rows_of(text)) for text in made.link().texts(sealing())]
    assert [row for block in found for row in block] == list(rows(tree))
    assert not tree or made.head.blocks == len(found) + 1


@given(
    st.lists(NAME, max_size=10),
    st.text(st.sampled_from("ab*?[]!-.^\\"), max_size=8).map(str.encode) | NAME,
)
def test_no_name_is_missed(listed: list[bytes], pattern: bytes) -> None:
    tree = {name: About(0, 0, 0, 0, 0, 0, 0, 0, 0, 0) for name in listed}
    texts = segment(tree).link().texts(sealing())
    found = {row.path for text in texts for row in names.named(text, between_zeros(pattern))}
    assert found <= tree.keys()
    assert {name for name in tree if fnmatchcase(name, pattern)} <= found


def opened(link: Link, by: Sealing) -> list[Row]:
    return [row for text in link.texts(by) for row in rows_of(text)]


def test_nothing_opens_what_is_of_another_place() -> None:
    tree = {b"a": About(FOLDER, *range(1, 10)), b"b": About(FOLDER, *range(2, 11))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names_maker, "_FULL", 1)
        made, other = segment(tree), segment(tree)
    head, blocks = made.head, list(made.link().blocks())
    assert len(blocks) == 3 and opened(Link(head, lambda: iter(blocks)), sealing())
    foreign = list(other.link().blocks())
    for changed, by, sealed in (
        (head, sealing(1), blocks),
        (head, replace(sealing(), archive=b"x" * 16), blocks),
        (head, replace(sealing(), volume_id=b"x" * 16), blocks),
        (head.replaced(session=b"x" * 16), sealing(), blocks),
        (head.replaced(base=b"x" * 16), sealing(), blocks),
        (head.replaced(id=other.head.id), sealing(), blocks),
        (head.replaced(blocks=2), sealing(), blocks[:2]),
        (head, sealing(), blocks[:2]),
        (head, sealing(), [blocks[0], blocks[2], blocks[1]]),
        (head, sealing(), [*blocks, blocks[2]]),
        (head, sealing(), [*foreign[:1], *blocks[1:]]),
        (head, sealing(), [blocks[0], foreign[1], blocks[2]]),
        (head, sealing(), []),
        (head, sealing(), [blocks[0], blocks[1], bytes(50)]),
    ):
        with pytest.raises(Unusable):
            opened(Link(changed, partial(iter, sealed)), by)


def test_what_no_honest_maker_seals_is_refused() -> None:
    """Whoever has the domain's key could seal these."""
    import zstandard

    def refused(text: bytes) -> None:
        with pytest.raises(Unusable):
            list(rows_of(names._expanded(text)))

    pack = zstandard.ZstdCompressor().compress
    refused(b"")
    refused(b"no frame")
    refused(pack(bytes(LONGEST_ROWS + 1)))
    refused(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100)))
    refused(pack(bytes(4)))
    refused(pack(RowsHead(1, 0).build()))
    refused(pack(RowsHead((1 << 32) - 1, 0).build()))

    def block(*entries: tuple[int, int, bytes]) -> bytes:
        found: list[bytes] = []
        packer = Packer(found.append)
        for what, depth, name in entries:
            packer._row(what, depth, name, names_maker._NOTHING)
        packer.finish()
        return found[0]

    assert list(rows_of(names._expanded(block((0, 1, b"a"), (2, 2, b"b"))))) == [Row(b"a/b", None)]
    for odd in (
        [(1, 0, b"a")],
        [(1, 2, b"a")],
        [(1, 1, b"a"), (1, 3, b"b")],
        [(1, 1, b"")],
        [(1, 1, b"a/b")],
        [(1, 1, b"a\0b")],
        [(3, 1, b"a")],
    ):
        refused(block(*odd))


@given(st.binary(max_size=300), st.integers(0, 3))
def test_any_bytes_are_an_error_or_rows(raw: bytes, count: int) -> None:
    for rows in (raw, RowsHead(count, max(len(raw) - count * names.WIDTH, 0)).build() + raw):
        try:
            found = list(rows_of(rows))
        except Unusable:
            continue
        for row in found:
            assert row.path and b"\0" not in row.path
    with pytest.raises(Unusable):
        head = SegmentHead(SESSION, SESSION, NO_SEGMENT, 1, 0)
        sealed = [seal_bytes(bytes(32), raw, b"")]
        list(Link(head, lambda: iter(sealed)).texts(sealing()))

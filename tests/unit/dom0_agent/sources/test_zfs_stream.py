# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams of ``zfs send -i`` made here by their declarations: what is in them is read, and nothing
that is not whole, or is of something else, is believed. Real ones: tests/zfs.
"""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_agent import kernel
from dom0_agent.sources.zfs_stream import changed

OLD, NEW = 0x1111, 0x2222
BLOCK = 16 << 10
END = (1 << 64) - 1


def record(kind: int, body: bytes, payload: bytes = b"", head: int = 0) -> bytes:
    return kernel.StreamRecord.row().pack(kind, head, body.ljust(304, b"\0")) + payload


def begin(old: int = OLD, new: int = NEW, kind: int = 3, magic: int = 0x2F5BACBAC) -> bytes:
    body = kernel.StreamBegin.row().pack(magic, 1 | 1 << 24, 0, kind, 0, new, old, b"tank/v@x")
    return record(0, body, b"nvlist", 6)


def last(new: int = NEW) -> bytes:
    return record(5, kernel.StreamEnd.row().pack(bytes(32), new))


def about(number: int) -> bytes:
    body = kernel.StreamObject.row().pack(number, 1, 0, BLOCK, 5, b"", 0)
    return record(1, body, bytes(8))


def write(start: int, end: int, compressed: int = 0, number: int = 1) -> bytes:
    body = kernel.StreamWrite.row().pack(
        number, 1, 0, start, end - start, NEW, b"", 15 if compressed else 0, b"", compressed
    )
    return record(3, body, b"\x05" * (compressed or end - start))


def embedded(start: int, end: int, stored: int) -> bytes:
    body = kernel.StreamEmbedded.row().pack(1, start, end - start, NEW, b"", 0, stored)
    return record(8, body, b"\x05" * (-(-stored // 8) * 8))


def free(start: int, span: int, number: int = 1) -> bytes:
    return record(4, kernel.StreamFree.row().pack(number, start, span))


def free_objects(first: int, count: int) -> bytes:
    return record(2, kernel.StreamFree.row().pack(first, count, NEW))


def read(raw: bytes) -> list[tuple[int, int]]:
    return list(changed(io.BytesIO(raw), OLD, NEW))


@given(
    st.sets(st.integers(0, 60)),
    st.randoms(use_true_random=False),
    st.none() | st.integers(61, 80),
)
def test_what_is_in_it_is_named(blocks: set[int], rng: object, tail: int | None) -> None:
    stream, numbers = [begin(), about(1)], sorted(blocks)
    if tail is not None:
        stream.append(free(tail * BLOCK, END))
    for number in numbers:
        start, end = number * BLOCK, (number + 1) * BLOCK
        kind = rng.randrange(4)  # type: ignore[attr-defined]
        stream.append(
            free(start, BLOCK)
            if kind == 0
            else embedded(start, end, 37)
            if kind == 1
            else write(start, end, 512 if kind == 2 else 0)
        )
    stream += [about(2), write(0, 512, number=2), free(512, END, number=2)]
    stream += [free_objects(3, 61), record(9, b""), last()]
    found = read(b"".join(stream))
    assert found == sorted(found)
    assert all(a[1] < b[0] for a, b in zip(found, found[1:], strict=False))  # joined
    named = {n for n in range(100) for a, b in found if a <= n * BLOCK < b}
    assert named == blocks | (set() if tail is None else set(range(tail, 100)))


WHOLE = b"".join((begin(), about(1), write(0, BLOCK), free(BLOCK, BLOCK), last()))


@given(st.integers(0, len(WHOLE) - 1))
def test_what_ends_too_early_is_refused(length: int) -> None:
    with pytest.raises(ValueError):
        read(WHOLE[:length])


@given(st.binary(max_size=2000))
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        read(raw)
    with pytest.raises(ValueError):
        read(begin() + raw)


@pytest.mark.parametrize(
    "raw",
    [
        begin(old=NEW) + last(),
        begin(new=OLD) + last(),
        begin(kind=2) + last(),  # a file system
        begin(magic=0x2F5BACBAD) + last(),
        begin() + last(OLD),
        WHOLE + b"\0",
        WHOLE + WHOLE,
        begin() + record(6, b"") + last(),  # WRITE_BYREF: of streams that are no more
        begin() + record(10, b"") + last(),  # REDACT
        begin() + record(77, b"") + last(),
        begin() + free_objects(0, END) + last(),
        begin() + free_objects(1, 1) + last(),
        begin() + write(BLOCK, 2 * BLOCK) + write(0, BLOCK) + last(),
        begin() + write(0, BLOCK) + write(0, BLOCK) + last(),
        begin() + free(5, 0) + last(),
        begin() + free(END - 1, 5) + last(),
        begin() + write(0, BLOCK, 17 << 20) + last(),  # no block is that large
    ],
)
def test_what_is_of_something_else_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        read(raw)


def test_the_structures_have_the_sizes_of_zfs() -> None:
    """``dmu_replay_record_t`` has 312 bytes."""
    assert kernel.StreamRecord.row().size == 312
    assert kernel.StreamBegin.row().size == 304

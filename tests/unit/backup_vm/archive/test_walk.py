# SPDX-License-Identifier: GPL-2.0-or-later
"""Walking over a file gives what construct reads of it, and every byte once; it ends where the file
makes no sense.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_vm.archive import format as files
from backup_vm.archive.walk import Ends, Field, shown, walk
from wire.chunks import OVERHEAD
from wire.declared import declaration
from wire.layout import Structure
from wire.messages import LENGTH, Offer
from wire.records import RECORD_SIZE, Clear

CLEAR = Clear(
    suite=1, archive=bytes(16), volume_id=bytes(16), session=bytes(16), sequence=1, time=2,
    size=3 * 65536, chunk_size=65536,
)  # fmt: skip
RECORD = CLEAR.build() + bytes(RECORD_SIZE - Clear.length())
entries = st.lists(
    st.tuples(st.integers(0, 2**64 - 1), st.binary(min_size=32, max_size=32)), max_size=9
)
sealed = st.lists(st.binary(min_size=OVERHEAD, max_size=OVERHEAD + 9), max_size=6)


def columns(rows: list[tuple[int, bytes]]) -> bytes:
    return files.pack_numbers([n for n, _ in rows]) + b"".join(i for _, i in rows)


def session(rows: list[tuple[int, bytes]]) -> bytes:
    return files.SessionHead(0, len(rows), bytes(16)).build() + RECORD + columns(rows) + bytes(32)


def partial(groups: list[list[tuple[int, bytes]]]) -> bytes:
    offer = Offer(bytes(16), bytes(16), bytes(16), 1, 2, 3, 4, 5, 0).build()
    return offer + b"".join(
        files.GROUP.pack(n, len(rows), bytes(16)) + columns(rows) for n, rows in enumerate(groups)
    )


def pack(chunks: list[bytes]) -> bytes:
    raw, index = files.PackHead(bytes(16)).build(), b""
    for chunk in chunks:
        raw += files.ENTRY.pack(len(chunk), bytes(32), bytes(16))
        index += files.INDEX_ENTRY.pack(len(raw), len(chunk), bytes(32), bytes(16))
        raw += chunk
    return raw + index + files.PackFoot(len(raw), len(chunks), bytes(16)).build()


def exported(chunks: list[bytes]) -> bytes:
    chunks = chunks[:3]
    ids = [bytes([1]) * 32] * len(chunks) + [bytes(32)] * (3 - len(chunks))
    raw = files.ExportHead(bytes(16), 5).build() + b"a = 1" + RECORD + b"".join(ids)
    return raw + b"".join(LENGTH.pack(len(one)) + one for one in chunks) + bytes(32)


FILES: st.SearchStrategy[tuple[type[Structure], bytes]] = st.one_of(
    entries.map(lambda rows: (files.SessionFile, session(rows))),
    st.lists(entries, max_size=3).map(lambda groups: (files.PartialFile, partial(groups))),
    sealed.map(lambda chunks: (files.PackFile, pack(chunks))),
    sealed.map(lambda chunks: (files.ExportedFile, exported(chunks))),
)


def walked(structure: type[Structure], raw: bytes, every: bool = True) -> list[Field]:
    return list(walk(structure, lambda at, size: raw[at : at + size], len(raw), every))


def flat(found: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What construct read, by the names that walking gives."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            if not key.startswith("_"):
                yield from flat(value, f"{name}.{key}" if name else key)
    elif isinstance(found, list):
        for number, value in enumerate(found):
            yield from flat(value, f"{name}[{number}]")
    else:
        yield name, found


def covered(fields: list[Field]) -> int:
    """Bytes up to which every one is in exactly one field."""
    at = 0
    for field in fields:
        assert field.at == at, field
        at += field.size
    return at


@settings(max_examples=60)
@given(FILES)
def test_walking_is_parsing(case: tuple[type[Structure], bytes]) -> None:
    structure, raw = case
    fields = walked(structure, raw)
    assert covered(fields) == len(raw)
    assert {f.name: f.value for f in fields} == dict(flat(declaration(structure).parse(raw)))
    assert not [field for field in fields if field.problem or field.rows]


@settings(max_examples=60)
@given(FILES)
def test_only_the_first_and_the_last_row_are_looked_at(
    case: tuple[type[Structure], bytes],
) -> None:
    structure, raw = case
    every, some = walked(structure, raw), walked(structure, raw, every=False)
    assert covered(some) == len(raw)
    left_out = [field for field in some if field.rows]
    kept = [field for field in some if not field.rows]
    assert kept == [f for f in every if not any(o.at <= f.at < o.at + o.size for o in left_out)]


@settings(max_examples=100)
@given(FILES, st.data())
def test_what_is_cut_or_changed_ends_in_words(
    case: tuple[type[Structure], bytes], data: st.DataObject
) -> None:
    structure, raw = case
    at = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.integers(0, 255))
    for other in (raw[:at], raw[:at] + bytes([byte]) + raw[at + 1 :], raw + raw[:at] + b"x"):
        found = []
        try:
            for field in walk(structure, lambda a, n, o=other: o[a : a + n], len(other)):
                found.append(field)  # noqa: PERF402 - those before it ends
        except Ends as ends:
            assert str(ends).startswith("byte ")
        assert all(field.at + field.size <= len(other) for field in found)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"SBSESS\x00\x02", '"SBSESS" 00 02'),
        (b"\0\0", "0000"),
        (b"ab", "6162"),
        (b"\x1b[31m", "1b5b33316d"),
    ],
)
def test_bytes_for_people(raw: bytes, words: str) -> None:
    assert shown(raw) == words

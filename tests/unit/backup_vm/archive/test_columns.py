# SPDX-License-Identifier: GPL-2.0-or-later
"""The columns of a session file, read in parts, against a list; and what cannot be one is damage,
quickly.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive import merge, references, sessions
from backup_vm.archive.columns import Columns, columns_of
from backup_vm.archive.format import DIGEST_SIZE, SessionHead
from backup_vm.archive.image import Image, split
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import DamagedError
from tests.conftest import QuickFolders
from tests.unit.backup_vm.archive.test_sessions import record

CHUNKS = 200
ask = st.tuples(st.sampled_from(["between", "next"]), st.integers(0, CHUNKS), st.integers(0, 60))


def stored(folder: Path, numbers: list[int], chunks: int = CHUNKS) -> tuple[LocalStorage, Session]:
    storage = LocalStorage(folder)
    columns = [n.to_bytes(8, "little") for n in numbers], [bytes([n % 256]) * 32 for n in numbers]
    return storage, sessions.write(storage, record(1, chunks), b"", 0, len(numbers), *columns)


@given(st.sets(st.integers(0, CHUNKS - 1)).map(sorted), st.integers(1, 70), st.lists(ask))
def test_any_part_can_be_asked_for_in_any_order(
    quick_folders: QuickFolders,
    numbers: list[int],
    rows: int,
    asked: list[tuple[str, int, int]],
) -> None:
    columns = Columns(*stored(quick_folders.mktemp("columns"), numbers), rows)
    for what, first, length in asked:
        if what == "next":
            assert columns.next(first) == min((n for n in numbers if n >= first), default=None)
            continue
        parts = list(columns.between(first, first + length))
        found = [n for part, _ in parts for n in part.tolist()]
        assert found == [n for n in numbers if first <= n < first + length]
        assert [i for _, ids in parts for i in split(ids)] == [bytes([n % 256]) * 32 for n in found]
        assert all(len(part) <= rows for part, _ in parts)


def test_what_is_kept_of_many_sessions_is_no_more_than_of_few(tmp_path: Path) -> None:
    storage, session = stored(tmp_path, [0], chunks=1 << 24)
    small, large = (
        Session(session.file, session.clear, session.record, bytes(15) + b"1", 1, count)
        for count in (500, 1 << 23)
    )
    for series in ([large], [large] * 2000, [large, *[small] * 2000], [small] * 9):
        columns = columns_of(storage, series)
        kept = sum(min(one.count, one._rows) for one in columns)
        assert kept <= max(1 << 19, 64 * len(series))
        assert kept == sum(one.count for one in columns) or kept >= 1 << 16


def forged(storage: LocalStorage, session: Session, **fields: int | list[int]) -> None:
    """Write a session file that says something else, under a checksum that is right."""
    numbers = fields.pop("numbers", [3, 5])
    assert isinstance(numbers, list)
    head = {"inherit": 0, "count": len(numbers), "base": bytes(16)}
    body = SessionHead.coder().build(head | fields) + session.record
    body += b"".join((n % (1 << 64)).to_bytes(8, "little") for n in numbers) + bytes(32) * len(
        numbers
    )
    digest = hashlib.blake2b(body, digest_size=DIGEST_SIZE).digest()
    storage.local(session.file).write_bytes(body + digest)


IMPOSSIBLE = [
    {"numbers": [1 << 63]},
    {"numbers": [(1 << 64) - 1]},
    {"numbers": [1 << 40]},
    {"numbers": [CHUNKS]},
    {"numbers": [7, 6, 5]},
    {"numbers": [3, 3]},
    {"numbers": [5, 1 << 62, 1]},
    {"inherit": CHUNKS + 1},
    {"inherit": (1 << 64) - 1},
    {"numbers": [*range(CHUNKS), 0]},
    {"count": 1 << 63},
    {"count": 3},
    {"count": 1},
]


@pytest.mark.parametrize("fields", IMPOSSIBLE, ids=str)
def test_what_cannot_be_is_damage_that_names_the_file(
    tmp_path: Path, fields: dict[str, int | list[int]]
) -> None:
    storage, session = stored(tmp_path, [3])
    forged(storage, session, **fields)
    with pytest.raises(DamagedError, match=session.file):
        sessions.check(storage, sessions.load(storage, session.file))
    uses = (
        lambda found: Image(storage, [found]).ids(0, CHUNKS),
        lambda found: list(merge.Merge(storage, [found]).windows()),
        lambda found: list(sessions.columns(storage, found).slices()),
    )
    for use in uses:
        with pytest.raises(DamagedError, match=session.file):
            use(sessions.load(storage, session.file))


def test_an_impossible_sequence_is_damage(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    session = sessions.write(storage, record(10**10, CHUNKS), b"", 0, 0, [], [])
    with pytest.raises(DamagedError, match=session.file):
        sessions.load(storage, session.file)


def test_numbers_are_compared_across_parts(tmp_path: Path) -> None:
    storage, session = stored(tmp_path, [3])
    forged(storage, session, numbers=[1, 2, 3, 4, 4, 5, 6, 7])
    found = sessions.load(storage, session.file)
    with pytest.raises(DamagedError):
        list(Columns(storage, found, 4).between(0, CHUNKS))
    with pytest.raises(DamagedError):
        list(Columns(storage, found).slices(4))


@given(st.lists(st.binary(min_size=32, max_size=32)), st.lists(st.integers(0, 30)))
def test_ids_are_found_by_their_prefixes(ids: list[bytes], asked: list[int]) -> None:
    known = sorted({int.from_bytes(one[:8]) for one in ids})
    wanted = [ids[index] if index < len(ids) else bytes([index]) * 32 for index in asked]
    column = np.frombuffer(b"".join(wanted), np.uint8).reshape(-1, 32)
    found = references.positions(np.array(known, np.uint64), column).tolist()
    for one, position in zip(wanted, found, strict=True):
        prefix = int.from_bytes(one[:8])
        assert position == (known.index(prefix) if prefix in known else len(known))

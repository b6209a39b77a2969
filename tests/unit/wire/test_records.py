# SPDX-License-Identifier: GPL-2.0-or-later

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.chunks import Keys, NotAuthentic
from wire.records import CLEAR_SIZE, RECORD_SIZE, Record, open_record, read_clear

KEYS = Keys(b"k" * 32)
RECORD = Record(
    suite=1,
    archive=b"a" * 16,
    volume_id=b"v" * 16,
    session=b"s" * 16,
    sequence=7,
    time=1795414500,
    size=123456789,
    chunk_size=131072,
    qube="work",
    volume="private",
    identity="_2.work",
    dedup_domain=bytes(16),
    root=b"r" * 32,
    previous=b"p" * 32,
)


@given(st.integers(0, 2**63), st.integers(0, 1 << 46), st.binary(min_size=32, max_size=32))
def test_a_record_survives_the_way(sequence: int, size: int, root: bytes) -> None:
    record = RECORD.replaced(sequence=sequence, size=size, root=root)
    sealed = record.seal(KEYS)
    assert len(sealed) == RECORD_SIZE
    assert open_record(sealed, KEYS) == record
    assert vars(read_clear(sealed)).items() <= vars(record).items()


def test_names_do_not_stand_in_clear() -> None:
    sealed = RECORD.replaced(qube="very-secret-qube").seal(KEYS)
    assert b"very-secret" not in sealed


def test_every_flipped_byte_is_noticed() -> None:
    sealed = RECORD.seal(KEYS)
    for at in range(RECORD_SIZE):
        with pytest.raises(NotAuthentic):
            open_record(sealed[:at] + bytes([sealed[at] ^ 0x80]) + sealed[at + 1 :], KEYS)


def test_another_key_opens_nothing() -> None:
    with pytest.raises(NotAuthentic):
        open_record(RECORD.seal(KEYS), Keys(bytes(32)))


@pytest.mark.parametrize("length", [0, 1, CLEAR_SIZE, RECORD_SIZE - 1, RECORD_SIZE + 1])
def test_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(NotAuthentic):
        open_record((RECORD.seal(KEYS) + bytes(10))[:length], KEYS)


@pytest.mark.parametrize("field", [{"chunk_size": 1000}, {"size": 1 << 60}])
def test_impossible_sizes_are_refused_though_authentic(field: dict[str, int]) -> None:
    with pytest.raises(NotAuthentic):
        open_record(RECORD.replaced(**field).seal(KEYS), KEYS)


def test_the_digest_does_not_depend_on_the_salt() -> None:
    assert RECORD.digest(KEYS) == open_record(RECORD.seal(KEYS), KEYS).digest(KEYS)
    assert RECORD.digest(KEYS) != RECORD.replaced(sequence=8).digest(KEYS)


def test_the_domain_s_keys_are_those_that_the_record_names() -> None:
    record = RECORD.replaced(dedup_domain=b"d" * 16, suite=2)
    assert record.domain_keys(KEYS) == KEYS.of_domain(b"d" * 16, 2)

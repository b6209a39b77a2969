# SPDX-License-Identifier: GPL-2.0-or-later
"""Grants as bytes: what is built is parsed, and what is not whole or does not fit together is
refused.
"""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mutation import forms
from wire import CHUNK_SIZES, LAST_SEQUENCE
from wire.chunks import SUITES, DomainKeys, Keys, NotAuthentic
from wire.grants import GRANT_LIMIT, BadGrant, Grant, GrantFile, GrantHead, NotGranted
from wire.records import OPENED_SIZE, OpenedRecord, Record, read_opened

ids, keys = st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@st.composite
def grants(draw: st.DrawFn) -> Grant:
    suite, same = draw(st.sampled_from(sorted(SUITES))), {}
    for name in ("archive", "volume_id", "dedup_domain"):
        same[name] = draw(ids)
    same |= {"suite": suite, "chunk_size": draw(st.sampled_from(CHUNK_SIZES))}
    records = [
        Record(
            **same,
            session=session,
            sequence=draw(st.integers(0, LAST_SEQUENCE)),
            time=draw(st.integers(0, 1 << 37)),
            size=draw(st.integers(0, 1 << 46)),
            qube=draw(names),
            volume=draw(names),
            identity=draw(names),
            root=draw(keys),
            previous=draw(keys),
        )
        for session in draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    ]
    return Grant(DomainKeys(suite, draw(keys), draw(keys), draw(keys)), tuple(records))


def sealed(raw: bytes) -> bytes:
    """With its checksum made right, as whoever hands a grant on can."""
    return raw[:-32] + hashlib.blake2b(raw[:-32], digest_size=32).digest()


A_GRANT = Grant(
    DomainKeys(1, b"i" * 32, b"s" * 32, b"r" * 32),
    tuple(
        Record(
            archive=b"a" * 16,
            volume_id=b"v" * 16,
            dedup_domain=b"d" * 16,
            suite=1,
            chunk_size=1 << 16,
            session=bytes([number]) * 16,
            sequence=number,
            time=1_700_000_000 + number,
            size=100_000,
            qube="work",
            volume="private",
            identity="work",
            root=b"o" * 32,
            previous=b"p" * 32,
        )
        for number in range(3)
    ),
)


@given(grants())
def test_a_grant_is_read_back(grant: Grant) -> None:
    raw = grant.build()
    assert Grant.parse(raw) == grant and len(raw) <= GRANT_LIMIT
    for record in grant.records:
        assert read_opened(record.opened()) == record
    # by the declaration, which the page shows, as by what runs
    assert forms.fields_of(GrantFile, raw)[-1].at + 32 == len(raw)


@given(grant=grants(), at=st.integers(0), bit=st.integers(0, 7), cut=st.integers(1))
def test_a_damaged_grant_is_refused(grant: Grant, at: int, bit: int, cut: int) -> None:
    raw = bytearray(grant.build())
    raw[at % len(raw)] ^= 1 << bit
    for damaged in (bytes(raw), bytes(raw[: -(cut % len(raw))]), bytes(raw) + b"\0", b""):
        with pytest.raises(BadGrant):
            Grant.parse(damaged)


def test_every_field_at_its_bounds_is_refused_or_means_what_it_says() -> None:
    raw = A_GRANT.build()
    fields = forms.fields_of(GrantFile, raw)
    for change in forms.in_fields(raw, fields, sealed):
        try:
            found = Grant.parse(change.raw)
        except BadGrant:
            continue
        assert found.build() == change.raw, change.name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dedup_domain": b"x" * 16}, "deduplication domain"),
        ({"volume_id": b"x" * 16}, "volume"),
        ({"archive": b"x" * 16}, "volume"),
        ({"suite": 2}, "volume"),
        ({"session": bytes(16)}, "twice"),
        ({"sequence": LAST_SEQUENCE + 1}, "impossible number"),
    ],
)
def test_sessions_that_do_not_belong_together(changes: dict[str, object], words: str) -> None:
    first, second, _ = A_GRANT.records
    other = second.replaced(**changes)  # type: ignore[arg-type]
    with pytest.raises(BadGrant, match=words):
        Grant(A_GRANT.keys, (first, other))
    raw = GrantHead.length() * b"\0" + first.opened() + other.opened() + bytes(32)
    head = A_GRANT.build()[: GrantHead.length() - 4] + (2).to_bytes(4, "little")
    with pytest.raises(BadGrant, match=words):
        Grant.parse(sealed(head + raw[len(head) :]))


def test_no_sessions_and_too_many() -> None:
    with pytest.raises(BadGrant):
        Grant(A_GRANT.keys, ())
    head = A_GRANT.build()[: GrantHead.length() - 4]
    for count in (0, 1, (1 << 32) - 1):
        with pytest.raises(BadGrant):
            Grant.parse(sealed(head + count.to_bytes(4, "little") + bytes(32)))


def test_a_record_opens_only_as_dom0_sealed_it() -> None:
    owner = Keys(b"m" * 32)
    for record in A_GRANT.records:
        assert A_GRANT.record_of(record.seal(owner)) == record
        forged = record.replaced(size=record.size + 1).seal(owner)
        with pytest.raises(NotAuthentic, match="not that of the granted session"):
            A_GRANT.record_of(forged)
    other = A_GRANT.records[0].replaced(session=b"o" * 16).seal(owner)
    with pytest.raises(NotGranted):
        A_GRANT.record_of(other)


def test_keys_are_not_printed() -> None:
    head = GrantHead.parse(A_GRANT.build()[: GrantHead.length()])
    for text in (repr(A_GRANT), repr(head)):
        assert not any(key in text for key in ("iiii", "ssss", "rrrr")), text
    assert OpenedRecord.length() == OPENED_SIZE

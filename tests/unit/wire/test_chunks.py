# SPDX-License-Identifier: GPL-2.0-or-later
import os
import tracemalloc

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from wire import chunks
from wire.chunks import (
    METHOD_PADDED,
    METHOD_RAW,
    METHOD_ZSTD,
    OVERHEAD,
    ZERO_ID,
    ChunkIds,
    Keys,
    NotAuthentic,
    Opener,
    Sealer,
    derive,
    open_bytes,
    seal_bytes,
)

SIZE = 1 << 16
KEYS = Keys(bytes(range(32)))
OURS = KEYS.of_domain(bytes(16), 1)
IDS = ChunkIds(OURS, SIZE)


@given(st.binary(max_size=3000), st.integers(0, 2**40))
def test_what_is_sealed_opens_to_the_same(seed: bytes, counter: int) -> None:
    chunk = (seed or b"\0") * (SIZE // max(len(seed), 1) + 1)
    chunk = chunk[:SIZE]
    sealed = Sealer(OURS, 3).seal(counter, IDS.of(chunk), chunk)
    assert len(sealed) <= SIZE + OVERHEAD
    assert Opener(OURS).open(IDS.of(chunk), sealed, IDS, SIZE) == chunk


@given(st.integers(0, SIZE), st.sampled_from([1, 1000, 4096, 16384, SIZE, 2 * SIZE]))
def test_padded_chunks_have_coarse_sizes(random_bytes: int, padding: int) -> None:
    chunk = os.urandom(random_bytes).ljust(SIZE, b"x")
    sealed = Sealer(OURS, 3, padding).seal(7, IDS.of(chunk), chunk)
    length = len(sealed) - OVERHEAD
    assert (sealed[0] == METHOD_PADDED and length % padding == 0 and length < SIZE) or (
        sealed[0] == METHOD_RAW and length == SIZE
    )
    assert Opener(OURS).open(IDS.of(chunk), sealed, IDS, SIZE) == chunk


@pytest.mark.parametrize("claim", [0, 1, 11, 13, 2**31, 2**32 - 1])
def test_a_padded_chunk_that_lies_about_its_length_is_noticed(claim: int) -> None:
    frame = zstandard.ZstdCompressor().compress(b"a" * SIZE)
    wanted = IDS.of(b"a" * SIZE)
    good = len(frame).to_bytes(4, "little") + frame
    assert (
        Opener(OURS).open(
            wanted, _sealed_by_an_insider(good + bytes(9), wanted, METHOD_PADDED), IDS, SIZE
        )
        == b"a" * SIZE
    )
    for plain in (claim.to_bytes(4, "little") + frame, good[:4], good[:3], b""):
        with pytest.raises(NotAuthentic):
            Opener(OURS).open(
                wanted, _sealed_by_an_insider(plain, wanted, METHOD_PADDED), IDS, SIZE
            )


def test_random_data_is_kept_raw() -> None:
    chunk = os.urandom(SIZE)
    sealed = Sealer(OURS, 3).seal(1, IDS.of(chunk), chunk)
    assert sealed[0] == 0 and len(sealed) == SIZE + OVERHEAD


def test_zeros_have_the_zero_id() -> None:
    assert IDS.of(bytes(SIZE)) == ZERO_ID
    assert IDS.of(bytes(SIZE - 1) + b"\x01") != ZERO_ID


def test_every_flipped_byte_is_noticed() -> None:
    chunk = b"x" * SIZE
    sealed = Sealer(OURS, 3).seal(1, IDS.of(chunk), chunk)
    for at in range(len(sealed)):
        wrong = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(NotAuthentic):
            Opener(OURS).open(IDS.of(chunk), wrong, IDS, SIZE)


@pytest.mark.parametrize("length", [0, 1, OVERHEAD - 1, OVERHEAD, 100])
def test_every_cut_is_noticed(length: int) -> None:
    chunk = os.urandom(SIZE)
    sealed = Sealer(OURS, 3).seal(1, IDS.of(chunk), chunk)
    for wrong in (sealed[:length], sealed + b"x", sealed * 2):
        with pytest.raises(NotAuthentic):
            Opener(OURS).open(IDS.of(chunk), wrong, IDS, SIZE)


def test_a_chunk_in_anothers_place_is_noticed() -> None:
    one, two = b"1" * SIZE, b"2" * SIZE
    sealed = Sealer(OURS, 3).seal(1, IDS.of(one), one)
    with pytest.raises(NotAuthentic):
        Opener(OURS).open(IDS.of(two), sealed, IDS, SIZE)


def _sealed_by_an_insider(plain: bytes, chunk_id: bytes, method: int = METHOD_ZSTD) -> bytes:
    """A chunk whose authentication is right but whose contents are not: made with the key."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, nonce, head = bytes(16), bytes(12), bytes([method])
    key = derive(OURS.sealing, b"stream", salt)
    return head + salt + nonce + AESGCM(key).encrypt(nonce, plain, head + chunk_id)


def test_a_bomb_made_with_the_key_takes_no_memory() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    tracemalloc.start()
    with pytest.raises(NotAuthentic):
        Opener(OURS).open(ZERO_ID, _sealed_by_an_insider(bomb, ZERO_ID), IDS, SIZE)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_right_seal_wrong_contents_is_noticed() -> None:
    wanted = IDS.of(b"a" * SIZE)
    plain = zstandard.ZstdCompressor().compress(b"b" * SIZE)
    with pytest.raises(NotAuthentic):
        Opener(OURS).open(wanted, _sealed_by_an_insider(plain, wanted), IDS, SIZE)


def test_domains_and_archives_give_unlike_ids() -> None:
    chunk = b"x" * SIZE
    other = ChunkIds(KEYS.of_domain(b"d" * 16, 1), SIZE).of(chunk)
    elsewhere = ChunkIds(Keys(bytes(32)).of_domain(bytes(16), 1), SIZE).of(chunk)
    assert len({IDS.of(chunk), other, elsewhere}) == 3


def test_two_streams_never_share_a_key() -> None:
    chunk = b"x" * SIZE
    assert (
        Sealer(OURS, 3).seal(1, IDS.of(chunk), chunk)[1:]
        != Sealer(OURS, 3).seal(1, IDS.of(chunk), chunk)[1:]
    )


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_short_texts_seal_and_open(plain: bytes, associated: bytes) -> None:
    sealed = seal_bytes(bytes(32), plain, associated)
    assert open_bytes(bytes(32), sealed, associated) == plain
    with pytest.raises(NotAuthentic):
        open_bytes(bytes(32), sealed, associated + b"x")


def test_volume_ids_depend_on_key_and_both_names() -> None:
    ids = {
        KEYS.volume_id("a", "b"),
        KEYS.volume_id("b", "a"),
        KEYS.volume_id("a", "bc"),
        Keys(bytes(32)).volume_id("a", "b"),
    }
    assert len(ids) == 4


class OnlyBytes:
    """AES-GCM as older releases of cryptography have it: it takes nothing but bytes."""

    def __init__(self, key: bytes) -> None:
        self._aead, self.tried = AESGCM(key), 0

    def decrypt(self, nonce: bytes, data: bytes | memoryview, associated: bytes) -> bytes:
        self.tried += 1
        if not isinstance(data, bytes):
            raise TypeError("argument 'data': a bytes-like object is required")
        return self._aead.decrypt(nonce, data, associated)


@pytest.mark.parametrize(("kind", "tries"), [(bytes, 1), (memoryview, 2)])
def test_older_libraries_are_given_bytes(
    monkeypatch: pytest.MonkeyPatch, kind: type[bytes | memoryview], tries: int
) -> None:
    made: list[OnlyBytes] = []

    def aead(key: bytes) -> OnlyBytes:
        made.append(OnlyBytes(key))
        return made[-1]

    chunk = os.urandom(SIZE)
    sealed = Sealer(OURS, 3).seal(1, IDS.of(chunk), chunk)
    monkeypatch.setattr(chunks, "_aead", aead)
    opener = Opener(OURS)
    for times in (1, 2):  # the key of a stream is derived once
        assert opener.open(IDS.of(chunk), kind(sealed), IDS, SIZE) == chunk
        assert [one.tried for one in made] == [times * tries]
    with pytest.raises(NotAuthentic):
        opener.open(ZERO_ID, kind(sealed), IDS, SIZE)

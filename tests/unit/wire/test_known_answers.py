# SPDX-License-Identifier: GPL-2.0-or-later
"""What crosses and what is stored, against answers that other code gives: RFC vectors, hashlib,
hmac, AES-GCM by hand.

Sealing and opening by the same code prove that the two agree, not that they do what docs/format.md
says.
"""

import hashlib
import hmac
import os
import struct
import threading
from typing import Any

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from wire import FORMAT, MAX_VOLUME_SIZE, slots
from wire.chunks import (
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
from wire.merkle import Tree
from wire.messages import CHUNK_HEAD_SIZE, largest_frame
from wire.records import CLEAR_SIZE, RECORD_SIZE, Record, open_record, read_clear

MASTER = bytes(range(32))
KEYS = Keys(MASTER)
DOMAIN = b"d" * 16
OURS = KEYS.of_domain(DOMAIN, 1)
SIZE = 1 << 16
RECORD = Record(
    suite=1,
    archive=b"a" * 16,
    volume_id=b"v" * 16,
    session=b"s" * 16,
    sequence=3,
    time=1_800_000_000,
    size=5 << 30,
    chunk_size=SIZE,
    qube="work",
    volume="private",
    identity="_2.work",
    dedup_domain=b"d" * 16,
    root=b"r" * 32,
    previous=b"p" * 32,
)


def hkdf(key: bytes, info: bytes, salt: bytes = bytes(32)) -> bytes:
    """RFC 5869 for one block of SHA-256."""
    return hmac.digest(hmac.digest(salt, key, "sha256"), info + b"\x01", "sha256")


def test_hkdf_gives_the_answers_of_rfc_5869() -> None:
    first = derive(b"\x0b" * 22, bytes(range(0xF0, 0xFA)), bytes(range(13)))
    assert first.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    third = derive(b"\x0b" * 22, b"")
    assert third.hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"


def test_sub_keys_and_volume_ids() -> None:
    assert KEYS.sub_key("records") == hkdf(MASTER, b"sparsebak/2 records\0")
    key = hkdf(MASTER, b"sparsebak/2 volume ids\0")
    assert (
        KEYS.volume_id("work", "private")
        == hashlib.blake2b(b"work/private", digest_size=16, key=key).digest()
    )


def test_chunk_ids_of_suite_1() -> None:
    key = hkdf(MASTER, b"sparsebak/2 chunk ids\0" + DOMAIN)
    ids = ChunkIds(OURS, SIZE)
    assert ids.of(b"x" * SIZE) == hashlib.blake2b(b"x" * SIZE, digest_size=32, key=key).digest()
    assert ids.of(bytes(SIZE)) == ZERO_ID


def test_chunk_ids_of_suite_2() -> None:
    key = hkdf(MASTER, b"sparsebak/2 chunk ids 2\0" + DOMAIN)
    # RFC 2104.
    inner, outer = (bytes(byte ^ pad for byte in key.ljust(64, b"\0")) for pad in (0x36, 0x5C))
    ids = ChunkIds(KEYS.of_domain(DOMAIN, 2), SIZE)
    assert (
        ids.of(memoryview(b"x" * SIZE))
        == hashlib.sha256(outer + hashlib.sha256(inner + b"x" * SIZE).digest()).digest()
    )
    assert ids.of(bytes(SIZE)) == ZERO_ID


@pytest.mark.parametrize("level", [1, 19])
@pytest.mark.parametrize("padding", [0, 4096])
def test_a_sealed_chunk_byte_by_byte(level: int, padding: int) -> None:
    ids, chunk = ChunkIds(OURS, SIZE), (b"some text, some more text " * 9000)[:SIZE]
    chunk = os.urandom(900) + chunk[900:]
    counter = 0x0102030405
    Sealer(OURS, 3).seal(0, ids.of(chunk), chunk)  # another level before, in the same thread
    sealed = (Sealer(OURS, level, padding) if padding else Sealer(OURS, level)).seal(
        counter, ids.of(chunk), chunk
    )
    method, salt, nonce, rest = sealed[:1], sealed[1:17], sealed[17:29], sealed[29:]
    assert nonce == bytes.fromhex("050403020100000000000000")
    plain = AESGCM(hkdf(hkdf(MASTER, b"sparsebak/2 sealing\0" + DOMAIN), b"stream", salt)).decrypt(
        nonce, rest, method + ids.of(chunk)
    )
    frame = zstandard.ZstdCompressor(level=level).compress(chunk)
    if padding:
        assert method == b"\x02" and len(plain) == 4096
        frame = (struct.pack("<I", len(frame)) + frame).ljust(4096, b"\0")
    assert plain == frame and (padding or method == b"\x01")


def test_compressors_are_each_threads_own_and_kept() -> None:
    ids, chunk, made = ChunkIds(OURS, SIZE), b"x" * SIZE, []
    original = zstandard.ZstdCompressor

    def counting(*rest: Any, **named: Any) -> Any:
        made.append(threading.get_ident())
        return original(*rest, **named)

    def work() -> None:
        sealer, opener = Sealer(OURS, 7), Opener(OURS)
        for counter in range(5):
            assert (
                opener.open(ids.of(chunk), sealer.seal(counter, ids.of(chunk), chunk), ids, SIZE)
                == chunk
            )
        assert len(opener._streams) == 1

    zstandard.ZstdCompressor = counting  # type: ignore[assignment,misc]
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        zstandard.ZstdCompressor = original  # type: ignore[misc]
    assert len(made) == 1


def test_an_opener_keeps_few_streams() -> None:
    ids, chunk = ChunkIds(OURS, SIZE), b"x" * SIZE
    opener = Opener(OURS)
    for _ in range(Opener._SALTS + 3):
        opener.open(ids.of(chunk), Sealer(OURS, 1).seal(1, ids.of(chunk), chunk), ids, SIZE)
        assert len(opener._streams) <= Opener._SALTS
    assert len(opener._streams) == 3


def test_the_root_of_an_image() -> None:
    key = hkdf(MASTER, b"sparsebak/2 root\0" + DOMAIN)
    tree = Tree(OURS)
    ids = [bytes([number]) * 32 for number in range(1, 4)]
    page = hashlib.blake2b(
        b"".join(ids).ljust(32768, b"\0"), digest_size=32, key=key, person=b"sparsebak page"
    ).digest()
    zeros = hashlib.blake2b(
        bytes(32768), digest_size=32, key=key, person=b"sparsebak page"
    ).digest()
    assert tree.page(b"".join(ids)) == page and tree.page(b"") == tree.zero_page == zeros
    whole = struct.pack("<QI", 2 << 30, SIZE) + page + zeros
    root = hashlib.blake2b(whole, digest_size=32, key=key, person=b"sparsebak root").digest()
    assert tree.root(2 << 30, SIZE, [page, zeros]) == root


def test_a_zero_page_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(OURS)
    monkeypatch.setattr(tree, "_page", lambda ids: pytest.fail("hashed again"))
    assert tree.page(bytes(64)) == tree.zero_page


def test_a_record_byte_by_byte() -> None:
    sealed = RECORD.seal(KEYS)
    clear = struct.pack(
        "<4sHBB16s16s16sQQQI",
        b"SBRC",
        2,
        1,
        0,
        b"a" * 16,
        b"v" * 16,
        b"s" * 16,
        3,
        1_800_000_000,
        5 << 30,
        SIZE,
    )
    secret = (
        b"work".ljust(64, b"\0")
        + b"private".ljust(64, b"\0")
        + b"_2.work".ljust(64, b"\0")
        + b"d" * 16
        + b"r" * 32
        + b"p" * 32
    )
    assert len(sealed) == RECORD_SIZE == 400 and sealed[:CLEAR_SIZE] == clear
    key, salt = hkdf(MASTER, b"sparsebak/2 records\0"), sealed[CLEAR_SIZE : CLEAR_SIZE + 16]
    assert sealed[CLEAR_SIZE + 16 : CLEAR_SIZE + 28] == bytes(12)
    assert (
        AESGCM(hkdf(key, b"stream", salt)).decrypt(bytes(12), sealed[CLEAR_SIZE + 28 :], clear)
        == secret
    )
    assert RECORD.digest(KEYS) == hashlib.blake2b(clear + secret, digest_size=32, key=key).digest()


@pytest.mark.parametrize(("at", "value"), [(4, FORMAT + 1), (6, 0), (6, 3), (7, 1), (0, 0)])
def test_a_record_of_another_kind_is_refused(at: int, value: int) -> None:
    sealed = RECORD.seal(KEYS)
    with pytest.raises(NotAuthentic, match="record"):
        read_clear(sealed[:at] + bytes([value]) + sealed[at + 1 :])


def test_a_record_may_be_of_either_suite_but_not_be_made_another() -> None:
    sealed = RECORD.replaced(suite=2).seal(KEYS)
    assert open_record(sealed, KEYS).suite == read_clear(sealed).suite == sealed[6] == 2
    with pytest.raises(NotAuthentic):
        open_record(sealed[:6] + b"\1" + sealed[7:], KEYS)


def test_a_record_at_the_limits() -> None:
    largest = RECORD.replaced(size=MAX_VOLUME_SIZE)
    assert open_record(largest.seal(KEYS), KEYS) == largest
    with pytest.raises(NotAuthentic, match="impossible size"):
        read_clear(RECORD.replaced(size=MAX_VOLUME_SIZE + 1).seal(KEYS))
    for wrong in (RECORD.seal(KEYS)[:-1], RECORD.seal(KEYS) + b"x"):
        with pytest.raises(NotAuthentic, match="another length"):
            read_clear(wrong)


@pytest.mark.parametrize(("field", "what"), [("qube", "qube"), ("volume", "volume")])
def test_a_record_with_a_name_that_cannot_be(field: str, what: str) -> None:
    with pytest.raises(NotAuthentic, match=f"^{what} '../x'"):
        open_record(RECORD.replaced(**{field: "../x"}).seal(KEYS), KEYS)  # type: ignore[arg-type]


def test_a_short_seal_byte_by_byte() -> None:
    sealed = seal_bytes(b"k" * 32, b"text", b"associated")
    assert sealed[16:28] == bytes(12) and len(sealed) == 28 + 4 + 16
    assert (
        AESGCM(hkdf(b"k" * 32, b"stream", sealed[:16])).decrypt(
            bytes(12), sealed[28:], b"associated"
        )
        == b"text"
    )
    assert open_bytes(b"k" * 32, sealed, b"associated") == b"text"


@pytest.mark.parametrize(
    ("log_n", "r", "p", "sane"),
    [
        (10, 1, 1, True),
        (9, 8, 1, False),
        (16, 8, 4, True),  # what is made
        (17, 8, 1, True),  # what the first version made: just SCRYPT_MEMORY
        (17, 8, 2, True),  # just SCRYPT_WORK
        (17, 8, 3, False),
        (16, 8, 5, False),
        (16, 9, 1, False),
        (18, 1, 1, False),
        (19, 16, 4, False),
        (22, 2, 1, False),
        (23, 1, 1, False),
        (17, 0, 1, False),
        (17, 17, 1, False),
        (17, 8, 0, False),
        (17, 8, 5, False),
        (20, 8, 1, False),
        (20, 9, 1, False),
        (21, 8, 1, False),
        (9, 17, 5, False),
        (255, 255, 255, False),
    ],
)
def test_a_slot_may_cost_so_much_and_no_more(
    monkeypatch: pytest.MonkeyPatch, log_n: int, r: int, p: int, sane: bool
) -> None:
    asked: list[tuple[int, int, int]] = []

    def costs_nothing(secret: bytes, *, n: int, r: int, p: int, **rest: Any) -> bytes:
        assert rest["salt"] == b"s" * 16 and rest["dklen"] == 32
        assert rest["maxmem"] > 128 * r * n  # or OpenSSL refuses what is allowed here
        asked.append((n, r, p))
        return hashlib.sha256(secret).digest()

    monkeypatch.setattr(hashlib, "scrypt", costs_nothing)
    head = bytes((slots.KIND_PASSPHRASE, log_n, r, p)) + b"s" * 16
    data = head + b"a" * 16 + b"sealed"
    slot = head + seal_bytes(hashlib.sha256(b"secret").digest(), MASTER, data)
    assert slots.open_slot(slot, slots.KIND_PASSPHRASE, b"secret", b"a" * 16) == (
        MASTER if sane else None
    )
    assert asked == ([(1 << log_n, r, p)] if sane else [])


def test_slots_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "SCRYPT_LOG_N", 10)
    slot = slots.make_slot(slots.KIND_PASSPHRASE, b"secret", MASTER, b"a" * 16)
    assert slot[:4] == bytes((1, 10, 8, 4)) and len(slot) == slots.SLOT_SIZE == 96
    key = Scrypt(salt=slot[4:20], length=32, n=1024, r=8, p=4).derive(b"secret")
    assert open_bytes(key, slot[20:], slot[:20] + b"a" * 16 + b"sealed") == MASTER
    for mode in (b"open", b""):
        other = slot[:20] + seal_bytes(key, MASTER, slot[:20] + b"a" * 16 + mode)
        assert slots.open_slot(other, slots.KIND_PASSPHRASE, b"secret", b"a" * 16) is None
    slot = slots.make_slot(slots.KIND_RECOVERY, b"r" * 20, MASTER, b"a" * 16)
    key = hkdf(b"r" * 20, b"sparsebak/2 recovery", slot[4:20])
    assert slot[0] == 2 and open_bytes(key, slot[20:], slot[:20] + b"a" * 16 + b"sealed") == MASTER


def test_a_slot_of_an_unknown_kind_opens_nothing() -> None:
    for kind in (0, 3, 255):
        head = bytes((kind, 10, 8, 1)) + b"s" * 16
        key = Scrypt(salt=b"s" * 16, length=32, n=1024, r=8, p=1).derive(b"secret")
        slot = head + seal_bytes(key, MASTER, head + b"a" * 16)
        assert slots.open_slot(slot, kind, b"secret", b"a" * 16) is None


def test_any_slot_opens_with_what_it_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "SCRYPT_LOG_N", 10)
    recovery, archive = bytes(range(20)), b"a" * 16
    text = slots.recovery_text(recovery)
    made = [
        slots.make_slot(slots.KIND_PASSPHRASE, b"first", MASTER, archive),
        slots.make_slot(slots.KIND_PASSPHRASE, text.encode(), b"m" * 32, archive),
        slots.make_slot(slots.KIND_RECOVERY, recovery, MASTER, archive),
    ]
    assert slots.open_any(made, b"first", archive) == MASTER
    assert slots.open_any(made, text.lower().encode(), archive) == MASTER
    assert slots.open_any(made, text.encode(), archive) == b"m" * 32
    for wrong in (b"second", b"\xff\xfe", b"", text.encode()[:-1]):
        assert slots.open_any(made, wrong, archive) is None
    assert slots.open_any(made, b"first", b"b" * 16) is None


def test_the_largest_frame() -> None:
    assert largest_frame(SIZE) == CHUNK_HEAD_SIZE + SIZE + 1 + 16 + 12 + 16

# SPDX-License-Identifier: GPL-2.0-or-later
import base64
import os
import random

import pytest

from wire import slots
from wire.slots import (
    KIND_PASSPHRASE,
    KIND_RECOVERY,
    BadRecoveryKey,
    make_slot,
    open_slot,
    parse_recovery,
    recovery_text,
)

ARCHIVE, MASTER = b"a" * 16, b"m" * 32


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "SCRYPT_LOG_N", 10)


@pytest.mark.parametrize(
    ("kind", "secret"), [(KIND_PASSPHRASE, b"pass"), (KIND_RECOVERY, b"r" * 20)]
)
def test_a_slot_opens_with_its_own_secret_only(kind: int, secret: bytes) -> None:
    slot = make_slot(kind, secret, MASTER, ARCHIVE)
    assert open_slot(slot, kind, secret, ARCHIVE) == MASTER
    assert open_slot(slot, kind, secret + b"x", ARCHIVE) is None
    assert open_slot(slot, kind, secret, b"b" * 16) is None
    assert open_slot(slot, 3 - kind, secret, ARCHIVE) is None


def test_a_flipped_slot_does_not_open() -> None:
    slot = make_slot(KIND_RECOVERY, b"r" * 20, MASTER, ARCHIVE)
    for at in range(len(slot)):
        assert (
            open_slot(
                slot[:at] + bytes([slot[at] ^ 1]) + slot[at + 1 :],
                KIND_RECOVERY,
                b"r" * 20,
                ARCHIVE,
            )
            is None
        )


def test_costs_that_would_exhaust_memory_are_refused() -> None:
    slot = bytearray(make_slot(KIND_PASSPHRASE, b"pass", MASTER, ARCHIVE))
    slot[1] = 60
    assert open_slot(bytes(slot), KIND_PASSPHRASE, b"pass", ARCHIVE) is None


def test_a_recovery_key_is_read_back_however_it_is_typed() -> None:
    for _ in range(50):
        secret = os.urandom(20)
        text = recovery_text(secret)
        assert parse_recovery(text) == secret
        assert parse_recovery(f"  {text.lower().replace('-', ' ')}\n") == secret


def test_one_wrong_letter_is_found_in_its_group() -> None:
    rng = random.Random(1)
    for _ in range(200):
        text = recovery_text(rng.randbytes(20))
        at = rng.choice([i for i, letter in enumerate(text) if letter != "-"])
        wrong = rng.choice([c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" if c != text[at]])
        with pytest.raises(BadRecoveryKey, match=f"group {at // 6 + 1} "):
            parse_recovery(text[:at] + wrong + text[at + 1 :])


def test_groups_in_the_wrong_order_are_found() -> None:
    groups = recovery_text(random.Random(2).randbytes(20)).split("-")
    with pytest.raises(BadRecoveryKey):
        parse_recovery("-".join([groups[1], groups[0], *groups[2:]]))


def test_digits_that_look_like_letters_are_forgiven() -> None:
    secret = base64.b32decode("OIBA" * 8)
    text = recovery_text(secret)
    typed = text.translate(str.maketrans("OIB-", "018 ")).lower()
    assert {"0", "1", "8", " "} <= set(typed) and parse_recovery(f" {typed}\n") == secret


WORD = "Gr\u00fc\u00dfe, s\u00e9jour"


def decomposed(text: str) -> bytes:
    import unicodedata

    return unicodedata.normalize("NFD", text).encode()


@pytest.mark.parametrize(
    "made_from", [WORD.encode(), decomposed(WORD), b"\xef\xbb\xbf" + WORD.encode()]
)
@pytest.mark.parametrize(
    "typed", [WORD.encode(), decomposed(WORD), b"\xef\xbb\xbf" + WORD.encode()]
)
def test_a_passphrase_opens_however_its_letters_are_encoded(made_from: bytes, typed: bytes) -> None:
    slot = make_slot(KIND_PASSPHRASE, slots.new_passphrase(made_from), MASTER, ARCHIVE)
    assert slots.open_any([slot], typed, ARCHIVE) == MASTER
    as_it_was = make_slot(KIND_PASSPHRASE, typed, MASTER, ARCHIVE)  # version 0.1.0 took any bytes
    assert slots.open_any([as_it_was], typed, ARCHIVE) == MASTER


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("word".encode("utf-16"), "UTF-16"),
        ("word".encode("utf-16-le"), "UTF-16 or binary"),
        (b"wo\0rd", "binary"),
        (WORD.encode("latin-1"), "not UTF-8"),
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"x" * 5000, "longer"),
        (b"two\rlines", "control character"),
        (b"wo\x7frd", "control character"),
        ("wo\x85rd".encode(), "control character"),
    ],
)
def test_what_is_no_passphrase_is_refused_with_words(raw: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        slots.new_passphrase(raw)


def test_spaces_count_and_a_carriage_return_does_not() -> None:
    assert slots.new_passphrase(slots.first_line(b" two words \r\nmore")) == b" two words "
    assert slots.new_passphrase(b"a\ttab") == b"a\ttab"


def test_only_so_many_slots_are_tried() -> None:
    one = make_slot(KIND_RECOVERY, b"r" * 20, MASTER, ARCHIVE)
    text = recovery_text(b"r" * 20).encode()
    wrong = make_slot(KIND_RECOVERY, b"x" * 20, MASTER, ARCHIVE)
    assert slots.open_any([*[wrong] * 15, one], text, ARCHIVE) == MASTER
    assert slots.open_any([*[wrong] * 16, one], text, ARCHIVE) is None
    assert slots.open_any([one], b"\xef\xbb\xbf" + text, ARCHIVE) == MASTER


def test_a_secret_has_a_limit_and_is_something() -> None:
    longest = b"x" * slots.SECRET_LIMIT
    assert slots.new_passphrase(longest) == longest
    with pytest.raises(ValueError, match="longer"):
        slots.new_passphrase(longest + b"x")
    for secret, opens in ((longest, True), (longest + b"x", False), (b"", False)):
        slot = make_slot(KIND_PASSPHRASE, secret, MASTER, ARCHIVE)
        assert slots.open_any([slot], secret, ARCHIVE) == (MASTER if opens else None)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Passphrases as they come from a terminal or a file, and recovery keys as printed."""

import os

import pytest

from wire import slots


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b"one", b"one"),
        (b"one\n", b"one"),
        (b"one\r\ntwo", b"one"),
        (b" one two \nx\ny", b" one two "),
        (b"\ronX\r\n", b"\ronX"),
        (b"", b""),
    ],
)
def test_the_first_line(raw: bytes, line: bytes) -> None:
    assert slots.first_line(raw) == line


def test_recovery_keys_as_printed() -> None:
    assert slots.recovery_text(bytes(20)) == "AAAAA-AAAAB-AAAAC-AAAAD-AAAAE-AAAAF-AAAAG-AAAAH"
    # base32 of 00 44 32: A A B C D E.. (0 16 3 ..): the weights 1, 3, 5, 7 by hand
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    secret = bytes(range(7, 27))
    for index, group in enumerate(slots.recovery_text(secret).split("-")):
        a, b, c, d = (letters.index(letter) for letter in group[:4])
        assert letters[(a + 3 * b + 5 * c + 7 * d + index) % 32] == group[4]
    every = "".join(slots.recovery_text(os.urandom(20)) for _ in range(50))
    assert set(every) == set(letters) | {"-"}


def test_every_letter_may_be_in_a_recovery_key() -> None:
    """Also all 32 of them in one."""
    secret = int("".join(f"{value:05b}" for value in range(32)), 2).to_bytes(20, "big")
    assert slots.parse_recovery(slots.recovery_text(secret)) == secret
    with pytest.raises(slots.BadRecoveryKey, match=r"group 3 .*\(AAAA!\)"):
        slots.parse_recovery("AAAAA-AAAAB-AAAA!-AAAAD-AAAAE-AAAAF-AAAAG-AAAAH")

# SPDX-License-Identifier: GPL-2.0-or-later
"""The keys of deduplication domains, against HKDF by hand."""

import hmac

import pytest

from wire.chunks import Keys

MASTER = bytes(range(32))
KEYS = Keys(MASTER)


def hkdf(key: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block of SHA-256, without a salt."""
    return hmac.digest(hmac.digest(bytes(32), key, "sha256"), info + b"\x01", "sha256")


@pytest.mark.parametrize("domain", [b"d" * 16, bytes(16), bytes(range(16))])
@pytest.mark.parametrize(("suite", "label"), [(1, b"chunk ids"), (2, b"chunk ids 2")])
def test_the_keys_of_a_domain(domain: bytes, suite: int, label: bytes) -> None:
    keys = KEYS.of_domain(domain, suite)
    assert keys.suite == suite
    assert keys.ids == hkdf(MASTER, b"sparsebak/2 " + label + b"\0" + domain)
    assert keys.sealing == hkdf(MASTER, b"sparsebak/2 sealing\0" + domain)
    assert keys.root == hkdf(MASTER, b"sparsebak/2 root\0" + domain)
    assert KEYS.of_domain(domain, suite) is keys  # derived once
    assert Keys(MASTER).of_domain(domain, suite) == keys


@pytest.mark.parametrize("domain", [b"", b"d" * 15, b"d" * 17])
def test_a_domain_of_another_length_has_no_keys(domain: bytes) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        KEYS.of_domain(domain, 1)


def test_keys_are_not_printed() -> None:
    assert repr(KEYS.of_domain(bytes(16), 1)) == "DomainKeys(suite=1)"

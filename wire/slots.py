# SPDX-License-Identifier: GPL-2.0-or-later
"""Key slots: the master key wrapped by a passphrase (scrypt) or by the printed recovery key, as
LUKS has them.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import hashlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from wire.chunks import (
    KEY_SIZE,
    NONCE_SIZE,
    SALT_SIZE,
    TAG_SIZE,
    NotAuthentic,
    derive,
    open_bytes,
    seal_bytes,
)
from wire.compiled import COMPILED
from wire.layout import Structure

if TYPE_CHECKING:
    from construct import Bytes, Int8ul

KIND_PASSPHRASE, KIND_RECOVERY = 1, 2
SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P = 16, 8, 4
"""64 MiB for half a second. Half the memory and twice the work of N = 2^17 with p = 1, so that
memory times work, which is what a guess costs on hardware made for it, is the same."""
SCRYPT_MEMORY = 1 << 27
SCRYPT_WORK = 1 << 21
"""What opening a slot may cost: bytes of memory, and N times r times p. No version made slots that
ask for more (the first made N = 2^17, r = 8, p = 1), and a slot from elsewhere must not be able to:
16 of these are tried in ten seconds."""
SECRET_LIMIT = 1 << 12
"""Bytes of a passphrase, at most; what a file holds beyond is not looked at."""
RECOVERY_BYTES = 20
MAX_SLOTS = 16
_SEALED = b"sealed"
"""The mode, in the associated data of a slot: what a passphrase opens was made for a sealed
archive.
"""
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


class SlotHead(Structure, compiled=COMPILED):
    """Beginning of a key slot: what makes the wrapping key of a secret."""

    kind: Annotated[int, Int8ul * "1 passphrase, 2 recovery key"]
    log_n: Annotated[int, Int8ul * "scrypt's N, as a power of two"]
    r: Annotated[int, Int8ul * "scrypt's r"]
    p: Annotated[int, Int8ul * "scrypt's p"]
    salt: Annotated[bytes, Bytes(16) * "scrypt's salt, random"]


class SealedKey(Structure):
    """A short seal of the master key."""

    salt: Annotated[bytes, Bytes(SALT_SIZE) * "random"]
    nonce: Annotated[bytes, Bytes(NONCE_SIZE) * "zero"]
    text: Annotated[bytes, Bytes(KEY_SIZE) * "AES-256-GCM of the master key"]
    tag: Annotated[bytes, Bytes(TAG_SIZE) * "tag"]


class Slot(Structure, compiled=COMPILED):
    """A key slot: its head, then a short seal of the master key."""

    head: SlotHead
    seal: SealedKey


SLOT_SIZE = Slot.length()


class BadRecoveryKey(ValueError):
    """A typed recovery key that cannot be right; the text says which group."""


def _wrapping_key(raw_head: bytes, secret: bytes) -> bytes:
    head = SlotHead.parse(raw_head)
    kind, log_n, r, p, salt = head.kind, head.log_n, head.r, head.p, head.salt
    if kind == KIND_RECOVERY:  # 160 random bits need no stretching
        return derive(secret, b"sparsebak/2 recovery", salt)
    sane = 10 <= log_n <= 17 and 1 <= r <= SCRYPT_R and 1 <= p <= SCRYPT_P
    dear = 128 * r << log_n > SCRYPT_MEMORY or r * p << log_n > SCRYPT_WORK
    if kind != KIND_PASSPHRASE or not sane or dear:
        raise NotAuthentic("key slot of an unknown kind, or one that would cost too much to try")
    # The standard library's, which is OpenSSL's as that of cryptography is: this is the moment at
    # which a command has the most memory, and cryptography is not imported yet.
    most = SCRYPT_MEMORY + (1 << 20)
    return hashlib.scrypt(secret, salt=salt, n=1 << log_n, r=r, p=p, maxmem=most, dklen=KEY_SIZE)


def make_slot(kind: int, secret: bytes, master: bytes, archive: bytes) -> bytes:
    """Wrap ``master`` for the archive under a passphrase (UTF-8 bytes) or a recovery key (20
    bytes).
    """
    head = SlotHead(kind, SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P, os.urandom(16)).build()
    return head + seal_bytes(_wrapping_key(head, secret), master, head + archive + _SEALED)


def open_slot(untrusted_slot: bytes, kind: int, secret: bytes, archive: bytes) -> bytes | None:
    """The master key, or None when the slot is of another kind or the secret is not the slot's."""
    if len(untrusted_slot) != SLOT_SIZE or untrusted_slot[0] != kind:
        return None
    at = SlotHead.length()
    head, wrapped = untrusted_slot[:at], untrusted_slot[at:]
    try:
        key = _wrapping_key(head, secret)
    except NotAuthentic:
        return None
    with contextlib.suppress(NotAuthentic):
        return open_bytes(key, wrapped, head + archive + _SEALED)
    return None


def first_line(raw: bytes) -> bytes:
    """The passphrase in a file's contents: both sides must read it alike, or what one seals the
    other cannot open.
    """
    return raw.split(b"\n", 1)[0].rstrip(b"\r")


def new_passphrase(raw: bytes) -> bytes:
    """A passphrase to be kept, from a file's first line or a terminal: UTF-8, composed (NFC).
    ValueError says why not.

    Two keyboards, or an editor and a terminal, give the same word as different bytes: composed or
    decomposed letters, a byte order mark. What is kept is the one form that all lead to. Spaces
    count, at the end, too.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw:
        raise ValueError("the passphrase is not UTF-8 but UTF-16 or binary; save it as UTF-8")
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("the passphrase is not UTF-8; save it as UTF-8") from None
    if not text:
        raise ValueError("the passphrase is empty")
    # The end of a line of an old Mac, for one; a tab can be typed.
    if any(one != "\t" and (one < " " or "\x7f" <= one < "\xa0") for one in text):
        raise ValueError("the passphrase has a control character, which nobody can type again")
    made = _normalized("NFC", text)
    if len(made) > SECRET_LIMIT:
        raise ValueError(f"the passphrase is longer than {SECRET_LIMIT} bytes")
    return made


def _normalized(form: Literal["NFC", "NFD"], text: str) -> bytes:
    import unicodedata  # not needed by a call

    return unicodedata.normalize(form, text).encode()


def _forms(secret: bytes) -> list[bytes]:
    """The bytes that a passphrase may have been when its slot was made: as kept now, as it is,
    decomposed. ASCII has one.
    """
    forms = [secret]
    with contextlib.suppress(UnicodeDecodeError):
        text = secret.removeprefix(codecs.BOM_UTF8).decode("utf-8")
        forms = [_normalized("NFC", text), _normalized("NFD", text)]
        forms.insert(1, secret)
    return list(dict.fromkeys(forms))


def open_any(untrusted_slots: Iterable[bytes], secret: bytes, archive: bytes) -> bytes | None:
    """The master key from any of the slots, ``secret`` being a passphrase or a recovery key as
    printed; None if none opens.
    """
    if not secret or len(secret) > SECRET_LIMIT:
        return None
    secrets = [(KIND_PASSPHRASE, form) for form in _forms(secret)]
    with contextlib.suppress(BadRecoveryKey):
        text = secret.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
        secrets.append((KIND_RECOVERY, parse_recovery(text)))
    bounded = tuple(untrusted_slots)[:MAX_SLOTS]
    tried = (open_slot(slot, kind, one, archive) for kind, one in secrets for slot in bounded)
    return next((master for master in tried if master is not None), None)


def _check(index: int, group: str) -> str:
    weighted = sum(
        weight * _ALPHABET.index(letter) for weight, letter in zip((1, 3, 5, 7), group, strict=True)
    )
    return _ALPHABET[(weighted + index) % 32]


def recovery_text(secret: bytes) -> str:
    """A 20-byte recovery key as printed: eight groups of four base32 letters and a check letter."""
    letters = base64.b32encode(secret).decode("ascii")
    groups = [letters[at : at + 4] for at in range(0, len(letters), 4)]
    return "-".join(group + _check(index, group) for index, group in enumerate(groups))


def parse_recovery(text: str) -> bytes:
    """Undo recovery_text, forgiving case, spaces and dashes; raise BadRecoveryKey naming the wrong
    group.
    """
    letters = (
        "".join(text.upper().split())
        .replace("-", "")
        .replace("0", "O")
        .replace("1", "I")
        .replace("8", "B")
    )
    if len(letters) != 40:
        raise BadRecoveryKey(f"a recovery key has 40 letters and digits, this one {len(letters)}")
    groups = [letters[at : at + 5] for at in range(0, 40, 5)]
    for index, group in enumerate(groups):
        if not set(group) <= set(_ALPHABET) or _check(index, group[:4]) != group[4]:
            raise BadRecoveryKey(f"group {index + 1} of the recovery key ({group}) is mistyped")
    return base64.b32decode("".join(group[:4] for group in groups))

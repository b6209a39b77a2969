"""Key slots: the master key wrapped by a passphrase (scrypt) or by the printed recovery key, as LUKS has them."""

import base64
import contextlib
import os
from collections.abc import Iterable

from wire.layout import U8, Fields, raw
from wire.sealing import KEY_SIZE, NotAuthentic, derive, open_bytes, seal_bytes

KIND_PASSPHRASE, KIND_RECOVERY = 1, 2
SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P = 16, 8, 4
"""64 MiB for half a second. Half the memory and twice the work of N = 2^17 with p = 1, so that memory times work, which is what
a guess costs on hardware made for it, is the same."""
SCRYPT_MEMORY = 1 << 30
"""Bytes that opening a slot may take, at most: a slot from elsewhere must not be able to ask for more."""
_HEAD = Fields(kind=U8, log_n=U8, r=U8, p=U8, salt=raw(16))
_HEAD_SIZE = _HEAD.size
SLOT_SIZE = _HEAD_SIZE + 16 + 12 + KEY_SIZE + 16
RECOVERY_BYTES = 20
MAX_SLOTS = 16
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


class BadRecoveryKey(ValueError):
    """A typed recovery key that cannot be right; the text says which group."""


def _wrapping_key(raw_head: bytes, secret: bytes) -> bytes:
    head = _HEAD.parse(raw_head)
    kind, log_n, r, p, salt = (head[name] for name in ("kind", "log_n", "r", "p", "salt"))
    if kind == KIND_RECOVERY:  # 160 random bits need no stretching
        return derive(secret, b"sparsebak/1 recovery", salt)
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    sane = 10 <= log_n <= 22 and 1 <= r <= 16 and 1 <= p <= 4
    if kind != KIND_PASSPHRASE or not sane or 128 * r << log_n > SCRYPT_MEMORY:
        raise NotAuthentic("key slot of an unknown kind, or one that would cost too much to try")
    return Scrypt(salt=salt, length=KEY_SIZE, n=1 << log_n, r=r, p=p).derive(secret)


def make_slot(kind: int, secret: bytes, master: bytes, archive: bytes) -> bytes:
    """Wrap ``master`` for the archive under a passphrase (UTF-8 bytes) or a recovery key (20 bytes)."""
    fields = {
        "kind": kind,
        "log_n": SCRYPT_LOG_N,
        "r": SCRYPT_R,
        "p": SCRYPT_P,
        "salt": os.urandom(16),
    }
    head = _HEAD.build(fields)
    return head + seal_bytes(_wrapping_key(head, secret), master, head + archive)


def open_slot(untrusted_slot: bytes, kind: int, secret: bytes, archive: bytes) -> bytes | None:
    """The master key, or None when the slot is of another kind or the secret is not the slot's."""
    if len(untrusted_slot) != SLOT_SIZE or untrusted_slot[0] != kind:
        return None
    head, wrapped = untrusted_slot[:_HEAD_SIZE], untrusted_slot[_HEAD_SIZE:]
    try:
        return open_bytes(_wrapping_key(head, secret), wrapped, head + archive)
    except NotAuthentic:
        return None


def first_line(raw: bytes) -> bytes:
    """The passphrase in a file's contents: both sides must read it alike, or what one seals the other cannot open."""
    return raw.split(b"\n", 1)[0].rstrip(b"\r")


def open_any(untrusted_slots: Iterable[bytes], secret: bytes, archive: bytes) -> bytes | None:
    """The master key from any of the slots, ``secret`` being a passphrase or a recovery key as printed; None if none opens."""
    secrets = [(KIND_PASSPHRASE, secret)]
    with contextlib.suppress(BadRecoveryKey):
        secrets.append((KIND_RECOVERY, parse_recovery(secret.decode("utf-8", "replace"))))
    tried = (
        open_slot(slot, kind, one, archive) for kind, one in secrets for slot in untrusted_slots
    )
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
    """Undo recovery_text, forgiving case, spaces and dashes; raise BadRecoveryKey naming the wrong group."""
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

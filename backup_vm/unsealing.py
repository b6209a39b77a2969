# SPDX-License-Identifier: GPL-2.0-or-later
"""What opens images: the archive's keys, by a passphrase, or a read grant, which opens some
sessions of one volume and nothing else.
"""

import sys
from pathlib import Path

from backup_vm.errors import UsageError, WrongKeyError
from backup_vm.paths import read_small
from wire.chunks import DomainKeys, Keys
from wire.grants import GRANT_LIMIT, BadGrant, Grant
from wire.records import Record, open_record
from wire.slots import first_line

AnyKeys = Keys | Grant
LONGEST_PASSPHRASE = 1 << 16
"""Bytes that a passphrase's file can have."""


def unseal(untrusted_record: bytes, keys: AnyKeys) -> tuple[Record, DomainKeys]:
    """What a session's record says, and the keys that its image is opened with; raise NotAuthentic,
    and NotGranted for a session that a grant is not for.
    """
    if isinstance(keys, Grant):
        return keys.record_of(untrusted_record), keys.keys
    record = open_record(untrusted_record, keys)
    return record, record.domain_keys(keys)


def read_grant(path: Path, archive: bytes | None = None) -> Grant:
    """The grant in a file, or with ``-`` on standard input, for the archive of that id if there is
    one; raise WrongKeyError, UsageError.
    """
    if str(path) == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("a grant is no text to be typed", "send it from a file or a pipe")
        raw = sys.stdin.buffer.read(GRANT_LIMIT + 1)
    else:
        raw = read_small(path, GRANT_LIMIT, "a grant", pipes=True)
    try:
        grant = Grant.parse(raw)
    except BadGrant as error:
        where = "standard input" if str(path) == "-" else path
        raise WrongKeyError(
            f"{where}: {error}",
            "make another one in dom0: sparsebak-agent grant QUBE/VOLUME -o FILE",
        ) from None
    if archive is not None and grant.archive != archive:
        raise WrongKeyError(
            f"the grant is for archive {grant.archive.hex()}, and this is {archive.hex()}",
            "name that archive, or make a grant for this one",
        )
    return grant


def typed_passphrase() -> bytes:
    """A passphrase or recovery key, asked for on the terminal."""
    from getpass import getpass

    try:
        return getpass("Passphrase or recovery key: ").encode("utf-8", "surrogateescape")
    except EOFError:
        raise WrongKeyError("no passphrase was given") from None
    except UnicodeDecodeError:
        raise WrongKeyError(
            "what was typed has letters that are none in this terminal's encoding",
            "set LANG as the terminal is, or give --passphrase-file F",
        ) from None


def read_passphrase(path: Path) -> bytes:
    """The first line of a file."""
    passphrase = first_line(read_small(path, LONGEST_PASSPHRASE, "a passphrase", pipes=True))
    if not passphrase:
        raise UsageError(f"{path}: the first line is empty; it must hold the passphrase")
    return passphrase

# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that end with a digest of all before it: session files, and indexes of names. It finds
damage, and no malice: whoever can write to the disk can make one.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator

from backup_vm.archive.format import DIGEST_SIZE
from backup_vm.archive.storage import Storage

_BLOCK = 1 << 20


def write(storage: Storage, name: str, parts: Iterable[bytes]) -> None:
    """Store a file that has these parts, and their digest behind them."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    new = storage.create(name)
    try:
        for part in parts:
            digest.update(part)
            new.write(part)
        new.write(digest.digest())
        new.finish()
    except BaseException:
        new.abandon()
        raise


def sound(fd: int) -> bool:
    """Whether an open file is as it was written, read from its beginning to its end."""
    found, end = hashlib.blake2b(digest_size=DIGEST_SIZE), content_end(fd)
    for part in between(fd, 0, end):
        found.update(part)
    return os.pread(fd, DIGEST_SIZE, end) == found.digest()


def content_end(fd: int) -> int:
    """Where the digest begins."""
    return max(os.fstat(fd).st_size - DIGEST_SIZE, 0)


def between(fd: int, at: int, end: int) -> Iterator[bytes]:
    """The bytes of a file from one place to another, in parts; fewer where the file is shorter."""
    while at < end and (part := os.pread(fd, min(end - at, _BLOCK), at)):
        yield part
        at += len(part)

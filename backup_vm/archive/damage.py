# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that cannot be read are damage to what needs them, as files with the wrong contents are,
and to nothing else.
"""

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from backup_vm.archive.storage import Files
from backup_vm.errors import DamagedError, UnreadableError

_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say something of this process, and nothing of the file."""


def text_checksum(body: bytes) -> str:
    """The checksum that files of text (archive.toml, notes.json) end with: it finds damage, and no
    malice, for whoever can write the file can write this.
    """
    return hashlib.blake2b(body, digest_size=16).hexdigest()


@contextmanager
def damage(files: Files, name: str, hint: str = "run: sparsebak scrub") -> Iterator[None]:
    """Whatever keeps the file from being read becomes an error that names it: a DamagedError where
    it is missing, an UnreadableError else (EIO, no permission).
    """
    try:
        yield
    except FileNotFoundError:
        raise DamagedError(f"{files.describe(name)} is missing", hint) from None
    except OSError as error:
        if error.errno in _OURS:
            raise
        raise UnreadableError(
            f"{files.describe(name)} cannot be read: {error.strerror or error}", hint
        ) from None


@contextmanager
def opened(files: Files, name: str) -> Iterator[int]:
    """A descriptor of a file of which parts are read.

    Raises DamagedError, also for errors of the reads within.
    """
    with damage(files, name), files.open(name) as file:
        yield file.fileno()

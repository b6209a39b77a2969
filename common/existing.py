# SPDX-License-Identifier: GPL-2.0-or-later
"""What is there and what is not, where neither a broken disk nor a forbidden folder is taken for
"not there".

Of pathlib, ``exists``, ``is_file`` and ``is_dir`` say "no" on any error from Python 3.14 on, and
``glob`` finds nothing from 3.13 on: a state that cannot be read would be one that never was.
"""

import errno
import os
import stat
from pathlib import Path

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP)


def exists(path: Path) -> bool:
    """Whether there is anything, links followed. Raises OSError where nobody can tell."""
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether there is a regular file, links followed. Raises OSError where nobody can tell."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_dir(path: Path) -> bool:
    """Whether there is a folder, links followed. Raises OSError where nobody can tell."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def children(folder: Path) -> list[Path]:
    """What is in a folder, by name; nothing where there is no folder. Raises OSError where nobody
    can tell.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return []


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
    except ValueError:  # a name that no file can have
        pass
    return None

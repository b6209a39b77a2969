# SPDX-License-Identifier: GPL-2.0-or-later
"""Image files in dom0: opened as nothing but regular files, and what an error of their storage
means.
"""

import errno
import os
import stat
from pathlib import Path

from common.durable import UNREADABLE, closing_fd
from dom0_agent.sources import Unreadable
from wire.status import Code, Refused

CHECK_ROOM = 256 << 20
"""Bytes written between two looks at the pool's room."""


def failed(text: str, error: OSError) -> Refused:
    """The refusal for an error of the storage; Unreadable where the disk has lost something."""
    code = Code.NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else Code.SOURCE_FAILED
    why = "the pool is read-only" if error.errno == errno.EROFS else error.strerror or str(error)
    kind = Unreadable if error.errno in UNREADABLE else Refused
    return kind(code, f"{text}: {why}")


def open_regular(path: Path, whose: str) -> int:
    """A descriptor to read a regular file, the image of ``whose``. Raises OSError.

    Refused for anything else, which is not even opened: a FIFO would wait for its writer, a tape
    would be wound.
    """
    with closing_fd(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)) as found:
        mode = os.fstat(found).st_mode
        if stat.S_ISLNK(mode):
            raise Refused(
                Code.SOURCE_FAILED, f"{whose}: cannot open {path}: a link, not a regular file"
            )
        if not stat.S_ISREG(mode):
            raise Refused(Code.SOURCE_FAILED, f"{whose}: {path} is not a regular file")
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)

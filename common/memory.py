# SPDX-License-Identifier: GPL-2.0-or-later
"""What Python and the C library do with memory that was freed."""

import atexit
import gc

_BLOCK = 8 << 20
_THRESHOLD = 50_000


def collect_rarely() -> None:
    """Look for garbage in cycles rarely, and not at the process's end.

    Imports make hundreds of thousands of objects that stay; to look through them again and again,
    and once more at the end, takes a fifth of the time of a short command.
    """
    gc.set_threshold(_THRESHOLD)
    atexit.register(gc.freeze)


def keep_freed() -> None:
    """Let memory that is freed stay with the process for what is allocated next, up to 16 MiB a
    heap.

    Chunks come and go by the thousand, and glibc gives the top of a heap back to the kernel as soon
    as a few are freed, only for the next ones to fault in again, page by page: a sixth of the
    processor time of a verify. When a block that
    was mapped is freed, glibc takes its size as what is worth mapping from then on, and twice that
    as what is worth giving back (mallopt(3), M_MMAP_THRESHOLD). The block made here is never
    touched, and so takes no memory; with another C library nothing happens.
    """
    bytes(_BLOCK)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What Python, the C library and the kernel do with the memory of a process."""

import atexit
import gc
import resource

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


def keep_out_of_cores() -> None:
    """Let no memory of this process, and of its children, be dumped when it crashes: keys may be in
    it.

    The limit is one byte and not none, because a limit of none is for files alone: a program that
    kernel.core_pattern names would get the memory through a pipe all the same. With one byte the
    kernel starts no program, and it makes no file either, since the least is a page.
    """
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    most = 0 if hard == 0 else 1  # a limit that is lower already cannot be raised
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))

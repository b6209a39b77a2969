# SPDX-License-Identifier: GPL-2.0-or-later
"""What a test mounts is its own process' alone.

Any process that makes itself a mount namespace, as a container does when it starts, gets a copy of
each mount that it sees, and may keep it for as long as it runs. A file system that a test has
unmounted would stay mounted there, and be written back into an image that the test, or the next cut
of the power, has put something else into. What ends in any way leaves nothing mounted, either.
"""

import ctypes
import os

_NEW_MOUNTS = 0x20000  # CLONE_NEWNS of unshare(2)
_RECURSIVE, _SLAVE, _SHARED = 0x4000, 0x80000, 0x100000  # MS_... of mount(2)


def own_mounts() -> bool:
    """Give the calling thread, and all that it starts from now on, mounts of their own; return
    whether it may.
    """
    if os.geteuid() != 0:
        return False
    libc = ctypes.CDLL(None)
    if libc.unshare(_NEW_MOUNTS):
        return False  # root of a container that may not mount
    # What the machine mounts and unmounts is still seen here, and what is done here is seen where a
    # child makes itself mounts of its own: unmounted here, it is unmounted there.
    for kind in (_SLAVE, _SHARED):
        if libc.mount(None, b"/", None, _RECURSIVE | kind, None):
            raise OSError("cannot make the mounts of this process its own")
    return True

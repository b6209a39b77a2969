# SPDX-License-Identifier: GPL-2.0-or-later
"""``mfusepy`` over libfuse 3, wherever that is there: imported from here only.

Left to itself it takes libfuse 2 where both are installed, which mounts with another program
(fusermount, not fusermount3), and keeps what is removed while it is open under another name.
"""

import ctypes
import ctypes.util
import os
from collections.abc import Callable

# A choice that somebody made stays.
if "FUSE_LIBRARY_PATH" not in os.environ and ctypes.util.find_library("fuse3"):
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")

import mfusepy  # loads the library

__all__ = ["ending", "mfusepy"]


def ending() -> Callable[[], bool]:
    """A function that says whether a signal has come that ends the mount, which libfuse tells
    nobody: it waits for what is being answered. To be called where a mount is answered.
    """
    library = mfusepy._libfuse
    session, exited = library.fuse_get_session, library.fuse_session_exited
    session.argtypes, session.restype = [ctypes.c_void_p], ctypes.c_void_p
    exited.argtypes, exited.restype = [ctypes.c_void_p], ctypes.c_int
    here = session(library.fuse_get_context().contents.fuse)
    return lambda: bool(exited(here))

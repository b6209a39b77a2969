# SPDX-License-Identifier: GPL-2.0-or-later
"""``mfusepy`` over libfuse 3, wherever that is there: imported from here only.

Left to itself it takes libfuse 2 where both are installed, which mounts with another program
(fusermount, not fusermount3), and keeps what is removed while it is open under another name.
"""

import ctypes.util
import os

# A choice that somebody made stays.
if "FUSE_LIBRARY_PATH" not in os.environ and ctypes.util.find_library("fuse3"):
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")

import mfusepy  # loads the library

__all__ = ["mfusepy"]

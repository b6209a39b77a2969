# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes over the socket between a command and the child that parses file systems for it.

A frame is its length, a letter, and the rest. The command asks with ASK, and answers FETCH with
bytes of an image; the child answers with any number of ROWS or one DATA, and then END or FAILED.
"""

from struct import Struct

LENGTH = Struct("<I")
ASK, BYTES = b"a", b"b"
FETCH, ROWS, DATA, END, FAILED = b"f", b"r", b"d", b"e", b"x"
RANGE = Struct("<IQI")
"""What FETCH names: an image by number, the first byte, and how many."""
LONGEST_RANGE = 1 << 20
LONGEST_FRAME = 4 << 20
"""Bytes of a frame: a thousand names with all that is said of them, with room to spare."""
ROWS_TOGETHER = 512

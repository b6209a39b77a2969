# SPDX-License-Identifier: GPL-2.0-or-later
"""The first three descriptors, which whoever starts a program may have closed."""

import os


def fill_gaps() -> None:
    """Let nothing that is opened later have the number of a standard stream that is closed: what is
    meant for whoever started the program would be written into it, or read from it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one. For reading: what is written there fails,
            # as it must, instead of being lost.
            os.open(os.devnull, os.O_RDONLY)

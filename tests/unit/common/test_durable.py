# SPDX-License-Identifier: GPL-2.0-or-later
"""What fails while a file is written says which one: there may be several disks, of which one is
full.
"""

import errno
from pathlib import Path

import pytest

from common.durable import write_synced


def test_a_write_that_fails_says_where() -> None:
    with pytest.raises(OSError) as caught:
        write_synced(Path("/dev/full"), b"x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")

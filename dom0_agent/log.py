# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0's log: lines on standard error, which qrexec and systemd hand to the journal. Never sent to
a caller.
"""

import sys
from contextlib import suppress
from typing import Final

from common.text import printable

ERROR: Final = 3
WARNING: Final = 4
INFO: Final = 6


def log(level: int, text: str) -> None:
    """Write one line with a syslog priority; control characters are escaped."""
    with suppress(
        OSError
    ):  # a full disk, a reader that is gone: what is done does not depend on it
        prefix = "" if sys.stderr.isatty() else f"<{level}>"
        print(f"{prefix}sparsebak-agent: {printable(text)}", file=sys.stderr, flush=True)

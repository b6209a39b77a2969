# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0's log: lines on standard error, which systemd hands to the journal as ``sparsebak-agent``.
Never sent to a caller.

What qrexec starts from a service file it logs by the service's name, and what another program
starts not at all. So such a process hands its lines to the journal itself, too:
``journalctl -t sparsebak-agent`` has all of them, whichever way an agent was started.
"""

import sys
import syslog
from contextlib import suppress
from typing import Final

from common.text import printable

ERROR: Final = 3
WARNING: Final = 4
INFO: Final = 6
NAME: Final = "sparsebak-agent"

_journal = False


def to_the_journal() -> None:
    """From now on write lines to syslog's socket, too, which is the journal's."""
    global _journal  # of the process, as standard error is
    syslog.openlog(NAME, syslog.LOG_PID, syslog.LOG_DAEMON)
    _journal = True


def log(level: int, text: str) -> None:
    """Write one line with a syslog priority; control characters are escaped."""
    line = printable(text)
    if _journal:
        syslog.syslog(level, line)
    with suppress(OSError, AttributeError):
        # A full disk, a reader that is gone, no such stream at all (sys.stderr is None then): what
        # is done does not depend on the log.
        prefix = "" if sys.stderr.isatty() else f"<{level}>"
        print(f"{prefix}{NAME}: {line}", file=sys.stderr, flush=True)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Telling others how a backup went, whichever way it ended."""

import time
from collections.abc import Callable

from backup_vm.errors import Exit, SparsebakError
from backup_vm.reporting import metrics
from backup_vm.reporting.ping import Ping


def told(
    action: Callable[[], int], url: str | None, file: str | None, warn: Callable[[str], None]
) -> int:
    """Do it, and return its exit code. Tell a ``url`` before and after; write metrics of the run
    beside ``file``.

    What cannot be told is a warning. A run that a signal ended tells nothing more: it has two
    seconds, and resumes.
    """
    ping = Ping(url, warn) if url else None
    begun, code = time.time(), int(Exit.FAILED)
    if ping is not None:
        ping.started()
    try:
        code = action()
    except SparsebakError as error:
        code = error.code
        raise
    except KeyboardInterrupt:
        ping = file = None
        raise
    finally:
        if file is not None:
            try:
                metrics.write(metrics.beside(file), metrics.of_run(file, begun, time.time(), code))
            except SparsebakError as error:
                warn(f"the metrics were not written: {error}")
        if ping is not None:
            ping.ended(code == Exit.OK)
    return code

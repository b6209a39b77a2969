# SPDX-License-Identifier: GPL-2.0-or-later
"""How long tests wait. The machine runs others at the same time, and may stand still for seconds:
no bound is nearer to what a step takes than to what it would take if it were wrong.
"""

import time
from collections.abc import Callable

AT_ONCE = 15.0
"""Seconds that what happens at once may take. What must not be waited for is to last far longer
where the test can choose.
"""
PATIENCE = 60.0
"""Seconds until what is to happen counts as what never will."""


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition to hold."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never happens"
        time.sleep(0.01)

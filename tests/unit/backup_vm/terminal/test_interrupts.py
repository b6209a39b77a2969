# SPDX-License-Identifier: GPL-2.0-or-later
import os
import signal
from unittest import mock

import pytest

from backup_vm import stopping
from backup_vm.terminal import interrupts


def test_a_signal_when_the_command_is_done_interrupts_nothing() -> None:
    """What was set up for signals is taken down then, which takes a moment."""
    close = os.close

    def closing(fd: int) -> None:
        signal.raise_signal(signal.SIGTERM)
        close(fd)

    with mock.patch.object(os, "close", closing), interrupts.handled(process=False):
        pass
    assert interrupts.came()
    stopping.check()  # nothing that comes after it in this process is to stop


def test_a_signal_meanwhile_interrupts_it() -> None:
    with pytest.raises(interrupts.Stop), interrupts.handled(process=False):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # which leaves no grace
    stopping.check()

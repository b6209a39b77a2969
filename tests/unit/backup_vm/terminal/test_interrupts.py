# SPDX-License-Identifier: GPL-2.0-or-later
import os
import signal
from unittest import mock

import pytest

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


def test_a_signal_meanwhile_interrupts_it() -> None:
    with pytest.raises(interrupts.Stop), interrupts.handled(process=False):
        signal.raise_signal(signal.SIGTERM)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A backup that is started while something has the archive."""

import fcntl
import os
import threading
import time

import pytest

from tests.system.acts import fire, write
from tests.system.world import ARCHIVE, World


@pytest.mark.parametrize("where", ["dom0", "vm"])
def test_a_backup_waits_for_a_check_that_runs(world: World, where: str) -> None:
    """By hand, say, of which systemd knows nothing; whoever asked for the backup says so."""
    write(world.image("work"))
    before = world.sessions("work/private")
    machine, name = (
        (world.dom0, "sparsebak-backup-vm") if where == "dom0" else (world.vm, "sparsebak-backup")
    )
    said = machine.journal(name).count("for it to end")
    lock = os.open(world.disk / ARCHIVE.removeprefix("/mnt/") / "archive.lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def end() -> None:
        until = time.monotonic() + 50
        while machine.journal(name).count("for it to end") == said and time.monotonic() < until:
            time.sleep(0.2)
        os.close(lock)

    check = threading.Thread(target=end)
    check.start()
    try:
        assert fire(machine, f"{name}.timer") == "success", machine.journal(name)
    finally:
        check.join()
    assert world.sessions("work/private") == before + 1
    assert machine.journal(name).count("for it to end") == said + 1

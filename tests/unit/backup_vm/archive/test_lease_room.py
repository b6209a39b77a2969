# SPDX-License-Identifier: GPL-2.0-or-later
"""Leases where there is no room: what makes room begins all the same, and takes one later."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from backup_vm.archive.lease import Lease
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import LockedError, NoRoomError
from tests.faultfs import Fault, FaultFS
from tests.unit.backup_vm.archive.test_lease import held


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT"])
def test_on_a_full_disk_a_run_begins_all_the_same(faultfs: FaultFS, name: str) -> None:
    storage = LocalStorage(faultfs.path / "archive")
    storage.prepare()
    faultfs.fail(Fault("create", name), Fault("mkdir", name))
    lease = Lease.acquire(storage.locks(), "PLACE", "prune")
    lease.keep()
    lease.check()
    lease.release()
    faultfs.fail(Fault("write", name))
    Lease.acquire(storage.locks(), "PLACE", "prune").release()
    assert held(storage) == []
    faultfs.fail()
    other = Lease.acquire(storage.locks(), "PLACE", "backup")
    faultfs.fail(Fault("create", name))
    with pytest.raises(LockedError, match="PLACE is in use by another run"):
        Lease.acquire(storage.locks(), "PLACE", "prune")
    other.release()


def test_a_lease_is_held_where_a_server_has_no_room_to_tell_its_age(tmp_path: Path) -> None:
    """Not even for an empty file, as XFS and Btrfs may have none: what makes room does not begin
    beside another run.
    """
    storage = LocalStorage(tmp_path / "archive")
    storage.prepare()
    other = Lease.acquire(storage.locks(), "PLACE", "backup")
    full = Mock(wraps=storage.locks())
    full.put.side_effect = full.create.side_effect = NoRoomError("HOST cannot store more")
    with pytest.raises(LockedError, match="PLACE is in use by another run"):
        Lease.acquire(full, "PLACE", "prune", makes_room=True)
    other.check()
    other.release()
    Lease.acquire(full, "PLACE", "prune", makes_room=True).release()


def test_a_run_that_began_without_takes_it_when_there_is_room(faultfs: FaultFS) -> None:
    """What it removes is room for others: from then on it keeps them away, or ends."""
    storage = LocalStorage(faultfs.path / "archive")
    storage.prepare()

    def begun() -> Lease:
        faultfs.fail(Fault("write", "ENOSPC"))
        lease = Lease.acquire(storage.locks(), "PLACE", "prune")
        lease.check()
        faultfs.fail()
        assert held(storage) == []
        return lease

    first = begun()
    first.check()
    assert held(storage) == ["writer-1"]
    with pytest.raises(LockedError, match="PLACE is in use by another run"):
        Lease.acquire(storage.locks(), "PLACE", "backup")
    first.renew()
    first.release()
    late = begun()
    other = Lease.acquire(storage.locks(), "PLACE", "backup")
    for _ in range(2):
        with pytest.raises(LockedError):
            late.check()
        other.release()
    late.release()
    assert held(storage) == []

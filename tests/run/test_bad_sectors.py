# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots of which a disk has lost a part, while the volume itself is sound: the volume is backed
up all the same, by another snapshot.
"""

import errno
import os

import pytest

from dom0_agent.rpc import extraction
from tests.faultfs import Fault, FaultFS
from tests.kit import GRAIN, Site, fill

SNAPSHOTS = "site/pool/.sparsebak/work/private"


@pytest.fixture
def failing(faultfs: FaultFS) -> Site:
    """One whose volumes are on such a disk, of driver ``file``, whose snapshots are copies."""
    return Site(faultfs.path / "site")


def bad(faultfs: FaultFS, operation: str) -> None:
    """The snapshots that there are now have a bad sector."""
    names = [path.name for path in (faultfs.real / SNAPSHOTS).iterdir()]
    assert names
    faultfs.fail(*(Fault(operation, "EIO", path=f"{SNAPSHOTS}/{name}") for name in names))


@pytest.mark.parametrize("operation", ["read", "open", "getattr,open"])
def test_a_base_that_cannot_be_read_is_no_base(
    failing: Site, faultfs: FaultFS, operation: str
) -> None:
    fill(failing.image(), 5 * GRAIN)
    failing.backup()
    bad(faultfs, operation)
    fill(failing.image(), 5 * GRAIN, 1)
    (done,) = failing.backup().done
    assert not done.full and list(failing.images().values())[-1] == failing.contents()
    assert not any(path.startswith("write") for path in faultfs.failed())


def test_a_session_whose_snapshot_cannot_be_read_is_given_up(
    failing: Site, faultfs: FaultFS
) -> None:
    fill(failing.image(), 5 * GRAIN)
    faultfs.fail(Fault("read", "EIO", path=f"{SNAPSHOTS}/*"))
    with pytest.raises(AssertionError, match="cannot read or write the volume"):
        failing.backup()
    faultfs.fail()
    assert not failing.snapshots()
    failing.backup()
    assert list(failing.images().values()) == [failing.contents()]


def test_what_came_of_it_is_kept_once(
    failing: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have been a disk that was away for a moment."""
    fill(failing.image(), 64 * GRAIN)
    real, lost = extraction._read_into, 40 * GRAIN

    def read(fd: int, view: memoryview, offset: int) -> int:
        if offset + len(view) > lost:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, view, offset)

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "_read_into", read)
        for given_up in (False, True):
            capsys.readouterr()
            with pytest.raises(AssertionError, match="cannot read or write the volume"):
                failing.backup()
            assert bool(failing.snapshots()) != given_up
            assert ("is given up" in capsys.readouterr().err) == given_up
    failing.backup()
    assert list(failing.images().values()) == [failing.contents()]

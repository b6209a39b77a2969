# SPDX-License-Identifier: GPL-2.0-or-later
"""The mark of a pool's metadata snapshot, on a disk that fails. What LVM does is tested in
tests/lvm.
"""

import pytest

from dom0_agent.sources import metadata_snapshot
from dom0_agent.sources.metadata_snapshot import MetadataSnapshot, ThinDevice
from tests.faultfs import Fault, FaultFS


class Pool(ThinDevice):
    """One that holds a metadata snapshot, or none, as the kernel does."""

    held = "-"

    def status(self) -> list[str]:
        return ["0", "1", "thin-pool", "1", "1/2", "1/2", self.held, "rw"]

    def message(self, text: str) -> None:
        self.held = "77" if text == "reserve_metadata_snap" else "-"


@pytest.mark.parametrize("held", ["-", "12"])
def test_a_mark_that_cannot_be_read_says_nothing(
    faultfs: FaultFS, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """A bad sector: the pool is read all the same, after whoever has it now was waited for."""
    monkeypatch.setattr(metadata_snapshot, "PATIENCE", 0.2)
    monkeypatch.setattr(metadata_snapshot, "_POLL", 0.05)
    pool, mark = Pool("group", "pool"), faultfs.path / "group+pool"
    with MetadataSnapshot(pool, mark):
        pass
    pool.held = held
    faultfs.fail(Fault("read", "EIO", path="group+pool"))
    with MetadataSnapshot(pool, mark):
        assert pool.held == "77"
        assert (faultfs.real / "group+pool").read_text().strip() == "77"
    assert pool.held == "-" and not (faultfs.real / "group+pool").read_text().strip()

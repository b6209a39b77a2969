# SPDX-License-Identifier: GPL-2.0-or-later
"""The mark of a pool's metadata snapshot, on a disk that fails. What LVM does is tested in
tests/lvm.
"""

from pathlib import Path

import pytest

from dom0_agent.sources import metadata_snapshot
from dom0_agent.sources.metadata_snapshot import MetadataSnapshot, ThinDevice
from tests.faultfs import Fault, FaultFS
from wire.status import Refused


class Pool(ThinDevice):
    """One that holds a metadata snapshot, or none, as the kernel does."""

    held = "-"

    def status(self) -> list[str]:
        return ["0", "1", "thin-pool", "1", "1/2", "1/2", self.held, "rw"]

    def message(self, text: str) -> None:
        self.held = "77" if text == "reserve_metadata_snap" else "-"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has it is not waited for as long."""
    monkeypatch.setattr(metadata_snapshot, "PATIENCE", 0.2)
    monkeypatch.setattr(metadata_snapshot, "_POLL", 0.05)


def held_pool(folder: Path, said: bytes) -> tuple[Pool, Path]:
    """A pool whose metadata snapshot somebody has, and its mark, which says this."""
    pool, mark = Pool("group", "pool"), folder / "group+pool"
    mark.write_bytes(said)
    pool.held = "12"
    return pool, mark


@pytest.mark.parametrize("said", [bytes(32), b"7" + bytes(31), b"unsu", b"\xff" * 32, b"-1"])
def test_a_mark_that_was_never_written_says_nothing(tmp_path: Path, said: bytes) -> None:
    """Zeros, as XFS may leave them in a crash: what we may have left is not another's for ever."""
    pool, mark = held_pool(tmp_path, said)
    with MetadataSnapshot(pool, mark):
        assert pool.held == "77"
    assert pool.held == "-" and not mark.read_text().strip()


@pytest.mark.parametrize("said", [b"", b" " * 32, b"13".ljust(32)])
def test_what_is_not_ours_is_not_released(tmp_path: Path, said: bytes) -> None:
    pool, mark = held_pool(tmp_path, said)
    with pytest.raises(Refused, match="another program holds"), MetadataSnapshot(pool, mark):
        pass
    assert pool.held == "12"


@pytest.mark.parametrize("held", ["-", "12"])
def test_a_mark_that_cannot_be_read_says_nothing(faultfs: FaultFS, held: str) -> None:
    """A bad sector: the pool is read all the same, after whoever has it now was waited for."""
    pool, mark = Pool("group", "pool"), faultfs.path / "group+pool"
    with MetadataSnapshot(pool, mark):
        pass
    pool.held = held
    faultfs.fail(Fault("read", "EIO", path="group+pool"))
    with MetadataSnapshot(pool, mark):
        assert pool.held == "77"
        assert (faultfs.real / "group+pool").read_text().strip() == "77"
    assert pool.held == "-" and not (faultfs.real / "group+pool").read_text().strip()

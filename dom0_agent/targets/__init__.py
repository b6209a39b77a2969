# SPDX-License-Identifier: GPL-2.0-or-later
"""New contents of volumes, one module for each way of putting them in place: all that a restore
writes. Sources only read.
"""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from dom0_agent.config import Volume
from dom0_agent.sources import Sources
from dom0_agent.targets.interface import Replacement

if TYPE_CHECKING:
    from dom0_agent.sources.directory import DirectorySource
    from dom0_agent.sources.lvm_thin import LvmThinSource
    from dom0_agent.sources.zfs import ZfsSource


def open(
    volume: Volume, size: int, state_dir: Path, older: bool = False, base: int | None = None
) -> Replacement:
    """Begin new contents of ``size`` bytes for a volume; Refused when it cannot be replaced.

    ``older``: what is restored is not the newest that dom0 knows. With ``base``, a snapshot, they
    begin as the present ones, where the storage can do that and say what differs from the snapshot.
    """
    driver = volume.pool.driver
    if driver == "qubesd":
        from dom0_agent.targets.qubesd import QubesImport

        return QubesImport(volume, size, state_dir)
    if driver == "settings":
        from dom0_agent.targets import dropbox

        return dropbox.Dropped(state_dir, volume.qube, volume.volume, size, older)
    source = Sources(state_dir).open(volume)
    source.drop_unfinished()
    # The driver decided what the source is: to ask the source itself would load all kinds.
    if driver == "lvm_thin":
        from dom0_agent.targets import lvm

        return lvm.LvmReplacement(cast("LvmThinSource", source), size, base)
    if driver == "zfs":
        from dom0_agent.targets import zfs

        return zfs.ZfsReplacement(cast("ZfsSource", source), size)
    from dom0_agent.targets import file

    return file.FileReplacement(cast("DirectorySource", source), size, base)

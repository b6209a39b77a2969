# SPDX-License-Identifier: GPL-2.0-or-later
"""New contents of volumes, one module for each way of putting them in place: all that a restore
writes. Sources only read.
"""

from pathlib import Path

from dom0_agent.config import Volume
from dom0_agent.sources import Source, Sources
from dom0_agent.targets.interface import Replacement


def open(
    volume: Volume, size: int, state_dir: Path, older: bool = False, base: int | None = None
) -> Replacement:
    """Begin new contents of ``size`` bytes for a volume; Refused when it cannot be replaced.

    ``older``: what is restored is not the newest that dom0 knows. With ``base``, a snapshot, they
    begin as the present ones, where the storage can do that and say what differs from the snapshot.
    """
    if volume.pool.driver == "qubesd":
        from dom0_agent.targets.qubesd import QubesImport

        return QubesImport(volume, size, state_dir)
    if volume.pool.driver == "settings":
        from dom0_agent.targets import dropbox

        return dropbox.Dropped(state_dir, volume.qube, volume.volume, size, older)
    source = Sources(state_dir).open(volume)
    clean(source)
    from dom0_agent.sources.directory import DirectorySource

    if isinstance(source, DirectorySource):
        from dom0_agent.targets import file

        return file.FileReplacement(source, size, base)
    from dom0_agent.sources.zfs import ZfsSource

    if isinstance(source, ZfsSource):
        from dom0_agent.targets import zfs

        return zfs.ZfsReplacement(source, size)
    from dom0_agent.targets import lvm

    return lvm.LvmReplacement(lvm.thin(source), size, base)


def clean(source: Source) -> None:
    """Remove what an interrupted restore of a volume left, and that nothing refers to."""
    from dom0_agent.sources.directory import DirectorySource

    if isinstance(source, DirectorySource):
        from dom0_agent.targets import file

        file.clean(source)
        return
    from dom0_agent.sources.zfs import ZfsSource

    if isinstance(source, ZfsSource):
        from dom0_agent.targets import zfs

        zfs.clean(source)
        return
    from dom0_agent.targets import lvm

    lvm.clean(lvm.thin(source))

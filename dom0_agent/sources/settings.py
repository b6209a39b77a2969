"""Source ``settings``: a volume that is written down when a snapshot is taken: a qube's settings,
or dom0's configuration.
"""

import os
from pathlib import Path

from common.durable import make_directory, sync_directory, write_synced
from dom0_agent.admin.settings.restored import SettingsReplacement
from dom0_agent.config import Volume
from dom0_agent.log import WARNING, log
from dom0_agent.sources.directory import whole_or_absent
from dom0_agent.sources.file import FileSource

_TOLD = 20
"""Things left out that are named in the log; the archive lists them all."""


def _tell(name: str, left_out: list[str]) -> None:
    for line in left_out[:_TOLD]:
        log(WARNING, f"{name}: left out: {line}")
    if len(left_out) > _TOLD:
        log(WARNING, f"{name}: {len(left_out) - _TOLD} more are left out; the archive lists them")


class SettingsSource(FileSource):
    """See Source. Snapshots are compared as those of ``file``, and are small."""

    def __init__(self, volume: Volume, state_dir: Path) -> None:
        super().__init__(volume)
        self._volume, self._state_dir = volume, state_dir
        self._store = volume.pool.path / volume.qube / volume.volume

    def live_size(self) -> int:
        """See Source: as when it was last written down."""
        return max((self.size(number) for number in self.snapshots()), default=0)

    def require_room(self) -> None:
        """See Source. They are small, and stored with dom0's own state."""

    def snapshot(self, number: int) -> None:
        """See Source."""
        path = self._path(number)
        with whole_or_absent(path, f"{self.name}: cannot save it"):
            make_directory(self._store)
            if self._volume.qube == "dom0":
                from dom0_agent.admin.settings import config_tar

                with open(path, "x+b") as out:
                    room = super().require_room
                    _tell(self.name, config_tar.write(self._volume.files, out, room))
                    out.flush()
                    os.fsync(out.fileno())
            else:
                from dom0_agent.admin.settings.document import collect

                write_synced(path, collect(self._volume.qube))
            sync_directory(self._store)

    def replace(self, size: int, older: bool = False) -> SettingsReplacement:  # type: ignore[override]
        """See Source. ``older``: they are not the newest known, so a qube that is made of them gets
        no network.
        """
        qube, volume = self._volume.qube, self._volume.volume
        return SettingsReplacement(self._state_dir, qube, volume, size, older)

    def clean(self) -> None:
        """See Source."""
        SettingsReplacement.clean(self._state_dir, self._volume.qube, self._volume.volume)

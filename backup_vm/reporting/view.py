# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive as ``list``, ``status`` and ``report`` look at it: sessions, space, ratios, checks."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from backup_vm.archive import name_index, naming
from backup_vm.archive.archive import Archive
from backup_vm.archive.incomplete import incomplete, text
from backup_vm.archive.notes import Check
from backup_vm.archive.sessions import Session
from backup_vm.archive.space import LARGEST, Account, Use, entries
from backup_vm.reporting.rows import SessionRow, VolumeRow, check_row, space_row
from backup_vm.volumes import Named

TIMER = "sparsebak-backup.timer"
_PATIENCE = 10.0
"""Seconds for systemd to answer."""


class View(NamedTuple):
    """The volumes of an archive, and an account of their space, if one was made."""

    archive: Archive
    volumes: list[Named]
    account: Account | None
    spoilt: Mapping[str, str]
    """Why sessions are known not to be whole, by session file."""
    names: Mapping[str, int]
    """Bytes of each index of names, by its file."""

    def use(self, volume: Named) -> Use | None:
        """What a volume takes up; None without an account, or where not all of it was counted."""
        account = self._account_of(volume.id)
        return account.volume(volume.id) if account else None

    def names_of(self, volume: str) -> int:
        """Bytes of the indexes of names of a volume, given its id."""
        return sum(size for file, size in self.names.items() if naming.volume_of(file) == volume)

    def comes_back(self, file: str) -> int | None:
        """Bytes that pruning a session would give back; None where ``use`` is."""
        account = self._account_of(naming.volume_of(file))
        return account.comes_back({file}) if account else None

    def _account_of(self, volume: str) -> Account | None:
        return self.account if self.account and self.account.knows(volume) else None

    @classmethod
    def of(cls, archive: Archive, volumes: list[Named], space: bool | None) -> "View":
        """Look at an archive. ``space``: whether to account for it; None: if that is quick."""
        by_id = {volume.id: list(volume.sessions) for volume in volumes}
        wanted = entries(by_id) <= LARGEST if space is None else space
        account = Account(archive, by_id) if wanted else None
        spoilt = incomplete(archive, {volume.id: volume.series for volume in volumes})
        return cls(archive, volumes, account, spoilt, name_index.sizes(archive.storage))

    def spoilt_lines(self, volumes: Iterable[Named]) -> list[str]:
        """A line for each of these volumes that has sessions which are not whole."""
        return [line for one in volumes for line in text(one.name, one.sessions, self.spoilt)]

    def row(self, volume: Named) -> VolumeRow:
        """A volume and its sessions."""
        return {
            "qube": volume.qube,
            "volume": volume.volume,
            "id": volume.id,
            **space_row(self.use(volume), self.names_of(volume.id)),
            "verified": check_row(last_verified(volume)),
            "sessions": [self._session(volume, session) for session in volume.sessions],
        }

    def _session(self, volume: Named, session: Session) -> SessionRow:
        note = volume.notes.of(session.clear.session)
        return {
            "session": session.name,
            "id": session.clear.session.hex(),
            "sequence": session.clear.sequence,
            "time": session.clear.time,
            "size": session.clear.size,
            "changed": session.count * session.clear.chunk_size,
            "full": session.inherit == 0,
            "frees": self.comes_back(session.file),
            "tags": sorted(note.tags),
            "note": note.text,
            "verified": check_row(volume.notes.verified.get(session.clear.session.hex())),
            "spoilt": self.spoilt.get(session.file),
        }


def last_verified(volume: Named) -> Check | None:
    """The last verification of any session of a volume."""
    checks = (volume.notes.verified.get(session.clear.session.hex()) for session in volume.sessions)
    return max(
        (check for check in checks if check is not None), key=lambda check: check.time, default=None
    )


def next_run() -> str | None:
    """When systemd will start the next backup here, as it writes it, or that one is at work now;
    None if it is not known to.
    """
    import shutil

    if shutil.which("systemctl") is None:
        return None
    wanted = ("NextElapseUSecRealtime", "SubState")
    said = systemctl("show", f"--property={','.join(wanted)}", TIMER)
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if found.get("SubState") == "running":  # a timer has no next time until what it started ends
        return "at work now"
    when = found.get("NextElapseUSecRealtime", "")
    return when if when not in ("", "n/a") else None


def systemctl(*words: str) -> str:
    """What systemctl prints; nothing where it fails, or does not answer."""
    import subprocess

    from common import programs

    try:
        done = programs.ask(["systemctl", *words], _PATIENCE)
    except (OSError, subprocess.TimeoutExpired, programs.TooMuch):
        return ""
    return done.out.decode(errors="replace").strip() if done.code == 0 else ""

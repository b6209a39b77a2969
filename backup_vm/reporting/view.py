"""What ``list``, ``status`` and ``report`` tell of an archive: sessions, space, ratios, health."""

import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from backup_vm.archive.archive import Archive
from backup_vm.archive.notes import Check
from backup_vm.archive.space import LARGEST, Account, Use, entries
from backup_vm.volumes import Named
from common.text import session_name

TIMER = "sparsebak-backup.timer"


@dataclass(frozen=True)
class View:
    """The volumes of an archive, and an account of their space, if one was made."""

    archive: Archive
    volumes: list[Named]
    account: Account | None

    def use(self, volume: Named) -> Use | None:
        """What a volume takes up; None without an account."""
        return self.account.volume(volume.id) if self.account else None

    def comes_back(self, file: str) -> int | None:
        """Bytes that pruning a session would give back; None without an account."""
        return self.account.comes_back({file}) if self.account else None

    def volume_data(self, volume: Named) -> dict[str, Any]:
        """A volume and its sessions as --json prints them."""
        use, last = self.use(volume), last_verified(volume)
        return {
            "qube": volume.qube,
            "volume": volume.volume,
            "id": volume.id,
            "own": use.own if use else None,
            "shared": use.shared if use else None,
            "compression": round(use.compression, 3) if use else None,
            "deduplication": round(use.deduplication, 3) if use else None,
            "verified": check_data(last),
            "sessions": [self._session_data(volume, at) for at in range(len(volume.sessions))],
        }

    def _session_data(self, volume: Named, at: int) -> dict[str, Any]:
        session = volume.sessions[at]
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
            "verified": check_data(volume.notes.verified.get(session.clear.session.hex())),
        }


def view(archive: Archive, volumes: list[Named], space: bool | None) -> View:
    """Look at an archive. ``space``: whether to account for it; None: if it does not take long."""
    by_id = {volume.id: list(volume.sessions) for volume in volumes}
    wanted = entries(by_id) <= LARGEST if space is None else space
    return View(archive, volumes, Account(archive, by_id) if wanted else None)


def last_verified(volume: Named) -> Check | None:
    """The last verification of any session of a volume."""
    checks = (volume.notes.verified.get(session.clear.session.hex()) for session in volume.sessions)
    return max(
        (check for check in checks if check is not None), key=lambda check: check.time, default=None
    )


def check_data(check: Check | None) -> dict[str, Any] | None:
    """A check as --json prints it."""
    return None if check is None else {"time": check.time, "ok": check.sound}


def check_text(check: Check | None) -> str:
    """A check for people."""
    if check is None:
        return "never"
    return session_name(check.time) + ("" if check.sound else ", damage found")


def next_run() -> str | None:
    """When systemd will start the next backup here, as it writes it; None if it is not known to."""
    if shutil.which("systemctl") is None:
        return None
    command = ["systemctl", "show", "--property=NextElapseUSecRealtime", "--value", TIMER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (
        done.stdout.strip()
        if done.returncode == 0 and done.stdout.strip() not in ("", "n/a")
        else None
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""Parity as the commands keep and use it: looked at and mended by in a scrub, kept up after a
backup and a prune.
"""

from collections.abc import Iterable

from backup_vm.archive.archive import Archive
from backup_vm.archive.parity import making
from backup_vm.archive.parity.making import Kept
from backup_vm.archive.parity.mending import Mender, Parity
from backup_vm.archive.scrub import Repair
from backup_vm.terminal.progress import Progress
from backup_vm.terminal.text import count_text
from common.override import override


class ParityScrub(Repair):
    """What a scrub does with parity. ``mended``: files that were mended; ``stale``: files that
    changed since their parity was made, and parity files that are damaged.
    """

    def __init__(self, archive: Archive, repairing: bool) -> None:
        self._archive = archive
        self._parity = Parity(archive)
        self._parity.compare_own()
        self._mender = Mender(archive, self._parity) if repairing else None
        self.files = self._parity.files

    @property
    def mended(self) -> list[str]:
        """Names of files."""
        return self._mender.done if self._mender is not None else []

    @property
    def stale(self) -> set[str]:
        """Names of files."""
        return self._parity.stale | set(self._parity.foreign)

    @override
    def mend(self, name: str) -> bool:
        return self._mender is not None and self._mender.mend(name)

    @override
    def compare(self, name: str) -> None:
        self._parity.compare(name)

    @override
    def sessions(self) -> None:
        if self._mender is not None:
            self._mender.sessions()
            self._mender.unlisted_packs()
            self._mender.settle()

    @override
    def conclude(self) -> None:
        if self._mender is not None:
            self._mender.settle()
            self._mender.needed_packs()
            self._mender.settle()

    def keep(self, share: float, progress: Progress) -> Kept:
        """Bring parity to what there is."""
        return making.keep(self._archive, share, progress, self.stale)


def after_backup(archive: Archive, share: float, before: Iterable[str], progress: Progress) -> Kept:
    """Make parity for what a backup stored. ``before``: the files there were when it began."""
    if archive.touched:
        return making.keep(archive, share, progress, archive.touched)
    return making.add(archive, share, making.covered(archive) - set(before), progress)


def after_prune(archive: Archive, share: float | None, progress: Progress) -> Kept:
    """Bring parity to what a prune left. Without a ``share`` only what nothing needs goes: a scrub
    makes the rest good.
    """
    if not archive.parity_files():
        return Kept()
    if share is None:
        return Kept(removed=making.remove_useless(archive))
    return making.keep(archive, share, progress, archive.touched)


def text(kept: Kept) -> str:
    """What was done, for people; nothing where nothing was."""
    made = count_text(kept.made, "parity file")
    words = [f"{made} made"] if kept.made else []
    words += [f"{kept.removed} removed"] if kept.removed else []
    return ", ".join(words) + "." if words else ""

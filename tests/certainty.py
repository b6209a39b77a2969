# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of damage share: a site with three sessions, and what is to be seen of it
afterwards.
"""

import random
from pathlib import Path

import pytest

from backup_vm.jobs.backup import BackupRun
from backup_vm.jobs.outcome import Report
from backup_vm.jobs.reading import assemble
from backup_vm.terminal.interrupts import Interrupted
from backup_vm.terminal.progress import Progress
from backup_vm.volumes import stored_volumes
from tests.kit import GRAIN, Site

CHUNKS = 16


def three_sessions(root: Path) -> Site:
    """One volume with three sessions, each of which changed five chunks."""
    site = Site(root / "site")
    site.image().write_bytes(random.Random(1).randbytes(CHUNKS * GRAIN))
    site.backup()
    for seed in (2, 3):
        write(site, seed, seed)
        site.backup()
    return site


def write(site: Site, seed: int, at: int, chunks: int = 5, name: str = "work/private") -> None:
    with open(site.image(name), "r+b") as file:
        file.seek(at * GRAIN)
        file.write(random.Random(seed).randbytes(chunks * GRAIN))


def session_files(site: Site) -> list[Path]:
    return sorted(site.archive.rglob("*.session"))


def packs_take(site: Site) -> int:
    return sum(path.stat().st_blocks * 512 for path in site.archive.rglob("*.pack"))


def run(site: Site, progress: Progress | None = None) -> Report:
    with site.open(True) as archive:
        agent = site.agent(archive)
        try:
            return BackupRun(archive, agent, progress or Progress()).run(agent.list())
        finally:
            agent.close()


class CutOff(Progress):
    """Interrupts a run, as Ctrl-C does, after so many chunks."""

    def __init__(self, chunks: int) -> None:
        self._left = chunks

    def advance(self, size: int) -> None:
        self._left -= 1
        if self._left == 0:
            raise Interrupted


def cut_off_after(site: Site, chunks: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(site, CutOff(chunks))


def newest(site: Site) -> list[bytes]:
    """The newest image of each volume, assembled and proven, in the order of the site's volumes."""
    found, target = {}, site.root / "newest.img"
    with site.open() as archive:
        keys = site.keys(archive)
        for volume in stored_volumes(archive, keys, {}):
            image = archive.image(list(volume.sessions), volume.sessions[-1])
            assemble(archive, image, keys, volume.name, target, Progress())
            found[volume.name] = target.read_bytes()
            target.unlink()
    return [found[name] for name in site.volumes]

# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive with parity, to be spoilt."""

import random
import shutil
from pathlib import Path

import pytest

from backup_vm import cli
from backup_vm.archive.storage.local import LocalStorage
from tests.kit import GRAIN, Site

PACKS = 8


def build(folder: Path) -> Site:
    """Three sessions in about a dozen packs of eight chunks, with parity of a quarter."""
    site = Site(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "pack_size", PACKS * GRAIN)
        site.image().write_bytes(random.Random(1).randbytes(64 * GRAIN))
        site.backup()
        for seed in (2, 3):
            with open(site.image(), "r+b") as file:
                file.seek(seed * GRAIN)
                file.write(random.Random(seed).randbytes(12 * GRAIN))
            site.backup()
        patch.setenv("SPARSEBAK_ARCHIVE", str(site.archive))
        assert cli.main(["scrub", "--parity", "25%"]) == 0
    return site


def copied(made: Site, folder: Path, patch: pytest.MonkeyPatch) -> Site:
    """A copy of a site, that the test may spoil."""
    shutil.copytree(made.root, folder, symlinks=True)
    patch.setattr(LocalStorage, "pack_size", PACKS * GRAIN)
    return Site(folder, make=False)


def files(site: Site, kind: str) -> list[Path]:
    return sorted(site.archive.rglob(f"*.{kind}"))


def contents(site: Site, *kinds: str) -> dict[str, bytes]:
    found = [path for kind in kinds or ("pack", "session") for path in files(site, kind)]
    return {str(path.relative_to(site.archive)): path.read_bytes() for path in found}


def spoil(path: Path, at: int, length: int, seed: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    length = min(length, len(raw) - at)
    raw[at : at + length] = random.Random(seed).randbytes(length)
    path.write_bytes(raw)

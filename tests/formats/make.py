# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a small archive to be kept: ``python -m tests.formats.make FOLDER``; README.md says when.

Two volumes, each a deduplication domain of its own, three sessions, chunks of every method, one
pack that both volumes share; one session exported, the file of ``sparsebak keys``. What each
session holds is noted from the volumes themselves, not from what was read back.
"""

import hashlib
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from backup_vm import cli
from tests.kit import GRAIN, PASSPHRASE, Site, own_domains
from wire import FORMAT, VERSION
from wire.slots import recovery_text

EXPORTED, KEYS, ABOUT = "work.sbx", "laptop.keys", "about.json"
CACHES = ("catalog.sqlite*", "archive.lock", "archive.wanted", "locks", "notes.lock", "reserve")
"""What an archive has besides, and anybody may remove."""


def contents(name: str, version: int) -> bytes:
    """What a volume holds: text that compresses, zeros, and in one of them what does not."""
    lines = [f"{name}, line {number}\n".encode() * 4000 for number in range(4)]
    chunks = [line[:GRAIN] for line in lines]
    if name == "vault/root":
        chunks.append(random.Random(2).randbytes(GRAIN))
    if version:
        chunks[1] = f"changed {version}\n".encode().ljust(GRAIN, b".")
    return b"".join([*chunks[:2], bytes(2 * GRAIN), *chunks[2:], b"the end" * (1 + version)])


def make(folder: Path) -> None:
    """Make the archive and what belongs to it in a folder that is not there yet."""
    folder.mkdir()
    with tempfile.TemporaryDirectory() as scratch, own_domains():
        site = Site(Path(scratch) / "site", volumes=("work/private", "vault/root"))
        volumes: dict[str, dict[str, Any]] = {name: {} for name in site.volumes}
        _back_up(site, volumes, 0, *site.volumes)
        # the same agent, told to pad from now on
        site.config.write_text("chunk_padding = 4096\n" + site.config.read_text())
        _back_up(site, volumes, 1, "work/private")
        secret = site.root / "passphrase"
        secret.write_bytes(PASSPHRASE)
        key = ("--passphrase-file", str(secret))
        _run(site, "tag", "work/private", "--add", "kept", "--note", "a note", *key)
        _run(site, "export", "work/private", "-o", str(folder / EXPORTED), *key)
        _run(site, "keys", "-o", str(folder / KEYS))
        shutil.copytree(site.archive, folder / "archive", ignore=shutil.ignore_patterns(*CACHES))
        about = {
            "format": FORMAT,
            "version": VERSION,
            "released": False,
            "passphrase": PASSPHRASE.decode(),
            "recovery_key": recovery_text(site.recovery or b""),
            "volumes": volumes,
        }
        (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


def _back_up(site: Site, volumes: dict[str, dict[str, Any]], version: int, *names: str) -> None:
    for name in names:
        site.image(name).write_bytes(contents(name, version))
    done = {f"{one.qube}/{one.volume}": one for one in site.backup(*names).done}
    for name in names:
        raw = site.contents(name)
        volumes[name][done[name].session] = {
            "size": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }


def _run(site: Site, *words: str) -> None:
    config = site.root / "config.toml"
    config.write_text(f'archive = "{site.archive}"\n')
    if cli.main(["--config", str(config), "--quiet", *words]):
        raise SystemExit(f"sparsebak {words[0]} failed")


if __name__ == "__main__":
    make(Path(sys.argv[1]))

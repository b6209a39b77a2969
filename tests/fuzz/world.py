# SPDX-License-Identifier: GPL-2.0-or-later
"""What fuzzing begins with: a small site, and real inputs taken from it."""

import atexit
import io
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from backup_vm.archive.archive import Archive
from backup_vm.archive.opening import open_archive
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.jobs import export
from backup_vm.terminal.progress import Progress
from dom0_agent.admin import granting
from dom0_agent.config import load
from tests.attack.kit import Attacker
from tests.kit import GRAIN, Site


@dataclass(frozen=True)
class World:
    """A small site with one session, made once a process."""

    site: Site
    attacker: Attacker
    scratch: LocalStorage


@cache
def world() -> World:
    root = Path(tempfile.mkdtemp(prefix="sparsebak-fuzz-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    site = Site(root / "site")
    site.image().write_bytes(b"some contents " * 10_000 + os.urandom(2 * GRAIN))
    site.backup()
    (root / "scratch/x").mkdir(parents=True)
    return World(site, Attacker(site), LocalStorage(root / "scratch"))


@cache
def opened() -> Archive:
    """The site's archive, open for reading as long as the process lives."""
    opened = open_archive(world().site.archive, writing=False)
    atexit.register(opened.__exit__, None, None, None)
    return opened.__enter__()


@cache
def granted() -> granting.Granted:
    return granting.find(load(world().site.config), "work/private", None)


def real_keys_file(site: Site) -> bytes:
    from backup_vm import cli

    path = site.root / "real-keys"
    path.unlink(missing_ok=True)
    assert cli.main(["--archive", str(site.archive), "keys", "-o", str(path)]) == 0
    return path.read_bytes()


def real_records() -> bytes:
    from backup_vm import cli

    path = world().site.root / "real-records"
    path.unlink(missing_ok=True)
    (volume_id,) = opened().sessions()
    words = ["--archive", str(world().site.archive), "--agent", f"local:{world().site.config}"]
    assert cli.main([*words, "records", volume_id, "-o", str(path)]) == 0
    return path.read_bytes()


def real_grant() -> bytes:
    found = granting.read_records(io.BytesIO(real_records()), "it")
    return granting.make(granted(), found, (), False).build()


def real_exported() -> bytes:
    archive, out = opened(), io.BytesIO()
    (series,) = archive.sessions().values()
    export.export(archive, archive.image(series, series[-1]), "work/private", out, Progress())
    return out.getvalue()


def real_reply(attacker: Attacker) -> bytes:
    from dom0_agent.rpc import dispatch

    environ = {"QREXEC_REMOTE_DOMAIN": "backup-vm", "QREXEC_REQUESTED_TARGET_TYPE": "keyword"}
    environ["QREXEC_REQUESTED_TARGET_KEYWORD"] = "adminvm"
    out = io.BytesIO()
    dispatch.run("List", environ, attacker.site.config, io.BytesIO(attacker.request()), out)
    return out.getvalue()

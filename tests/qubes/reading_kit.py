# SPDX-License-Identifier: GPL-2.0-or-later
"""A site whose backup VM is read by a disposable, through qrexec's stand-in."""

import io
import json
import random
import sys
from pathlib import Path

import pytest

from backup_vm import cli
from backup_vm.agent.transport import qrexec
from dom0_agent.admin import cli as agent_cli
from dom0_agent.admin.granting import find, make, read_records
from dom0_agent.config import load
from tests.kit import change
from tests.qubes.kit import BACKUP_VM, QubesSite
from wire.grants import Grant
from wire.reading import ReadRequest

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent


class Reading:
    """The site, and disp1, which qrexec's stand-in lets call as it is tagged."""

    def __init__(self, site: QubesSite, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.log = site, site.root / "calls"
        config, program = site.root / "config.toml", site.root / "sparsebak"
        config.write_text(f'archive = "{site.archive}"\n')
        program.write_text(f'#!/bin/sh\nexec {BIN}/sparsebak --config {config} "$@"\n')
        settings, self.client = site.root / "qrexec.json", site.root / "client"
        known = {"qubesd": str(site.qubesd.socket), "config": str(site.config), "yes": True}
        known |= {"python": sys.executable, "sparsebak": str(program), "source": "disp1"}
        settings.write_text(json.dumps({**known, "log": str(self.log)}))
        self.client.write_text(
            f'#!/bin/sh\nexec {sys.executable} {HERE / "qrexec_client.py"} {settings} "$@"\n'
        )
        for script in (program, self.client):
            script.chmod(0o755)
        monkeypatch.setattr(qrexec, "CLIENT", str(self.client))
        site.qubesd.qubes[BACKUP_VM].tags.add("sparsebak-vm")
        self.tag()

    def tag(self) -> None:
        self.site.qubesd.qubes["disp1"].tags.add("sparsebak-reader")

    def untag(self) -> None:
        self.site.qubesd.qubes["disp1"].tags.discard("sparsebak-reader")

    def grant(self, name: str = "work", every: bool = True) -> Grant:
        of, path = find(load(self.site.config), name, None), self.site.root / "records"
        path.unlink(missing_ok=True)
        words = ["--config", str(self.site.root / "config.toml"), "records", of.volume_id.hex()]
        assert cli.main([*words, "-o", str(path)]) == 0
        return make(of, read_records(io.BytesIO(path.read_bytes()), "it"), (), every)


def set_up(site: QubesSite, monkeypatch: pytest.MonkeyPatch) -> Reading:
    """Set up, with two sessions."""
    assert agent_cli.main(["--config", str(site.config), "setup", BACKUP_VM]) == 0
    site.backup()
    change(site.image(), random.Random(1), resize=False)
    site.backup()
    return Reading(site, monkeypatch)


def asked(wanted: int, first: int, count: int) -> bytes:
    return ReadRequest(wanted=wanted, first=first, count=count).build()

# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole way on Qubes OS, as a user goes it: agent and manager as processes, between them
qrexec, its policy and qubesd.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_vm import cli
from backup_vm.agent.transport import qrexec
from dom0_agent.admin import cli as agent_cli
from tests.kit import PASSPHRASE, change
from tests.qubes.conftest import REAL
from tests.qubes.kit import BACKUP_VM, QubesSite

HERE = Path(__file__).parent
PYTHON = """#!{python}
import runpy, sys
sys.path[:0] = {paths!r}
import qubesadmin, qubesadmin.config
qubesadmin.config.QUBESD_SOCKET, qubesadmin.config.QREXEC_SERVICES_DIR = {socket!r}, {services!r}
if hasattr(qubesadmin, "app"):
    qubesadmin.Qubes = qubesadmin.app.QubesLocal
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Machine:
    """A site, what the user in dom0 answers when asked, and the calls so far."""

    def __init__(self, site: QubesSite, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.settings, self.log = site, site.root / "qrexec.json", site.root / "calls"
        python, client = site.root / "python", site.root / "client"
        paths = [REAL or str(HERE / "standin")]
        places = {"socket": str(site.qubesd.socket), "services": str(site.qubesd.services)}
        python.write_text(PYTHON.format(python=sys.executable, paths=paths, **places))
        client.write_text(
            f'#!/bin/sh\nexec {sys.executable} {HERE / "qrexec_client.py"} {self.settings} "$@"\n'
        )
        for script in (python, client):
            script.chmod(0o755)
        self.python = python
        self.answer(True)
        monkeypatch.setattr(qrexec, "CLIENT", str(client))
        monkeypatch.setenv("SPARSEBAK_AGENT", "qrexec")
        monkeypatch.setenv("SPARSEBAK_ARCHIVE", str(site.archive))

    def answer(self, yes: bool) -> None:
        known = {
            "qubesd": str(self.site.qubesd.socket),
            "config": str(self.site.config),
            "python": str(self.python),
        }
        self.settings.write_text(json.dumps({**known, "log": str(self.log), "yes": yes}))

    def calls(self) -> list[str]:
        found = self.log.read_text().splitlines()
        self.log.unlink()
        return found


@pytest.fixture
def machine(qubes: QubesSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    assert agent_cli.main(["--config", str(qubes.config), "setup", BACKUP_VM]) == 0
    yield Machine(qubes, monkeypatch)


def test_backup_and_back_from_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    site = machine.site
    files = site.root / "etc-qubes"
    files.mkdir()
    (files / "mine").write_text("rule\n")
    site.config.write_text(
        site.config.read_text().replace("dom0_config = []", f'dom0_config = ["{files}"]')
    )
    assert cli.main(["backup", "--all"]) == 5  # what is listed was listed for another configuration
    assert "sparsebak-agent volumes" in capsys.readouterr().err
    machine.calls()
    assert agent_cli.main(["--config", str(site.config), "setup", BACKUP_VM]) == 0
    assert cli.main(["backup", "--all"]) == 0
    calls = machine.calls()
    assert (
        "allow @adminvm sparsebak.Extract+config" in calls
        and "allow work sparsebak.Extract+private" in calls
    )
    assert not [call for call in calls if not call.startswith("allow ")]
    before = site.contents()
    assert cli.main(["verify"]) == 0
    # over a qube that is there: dom0 is asked, and may say no
    change(site.image(), random.Random(1), resize=False)
    changed = site.contents()
    machine.answer(False)
    assert cli.main(["restore", "work/private"]) == 5
    assert "policy refused" in capsys.readouterr().err and site.contents() == changed
    machine.answer(True)
    machine.calls()
    assert cli.main(["restore", "work/private"]) == 0
    session = list(site.images())[-1]
    assert machine.calls()[-1] == f"ask work sparsebak.Restore+work+private+{session}"
    assert site.contents() == before
    # a qube that is gone
    del site.qubesd.qubes["work"]
    site.image().unlink()
    site.image().write_bytes(b"")
    key = site.root / "passphrase"
    key.write_bytes(PASSPHRASE + b"\n")
    restore = ["restore", "work", "--passphrase-file", str(key)]
    capsys.readouterr()
    site.write_down()
    assert cli.main(restore) == 1
    assert "settings apply work" in capsys.readouterr().err and "work" not in site.qubesd.qubes
    site.apply("work")
    assert cli.main(restore) == 0
    asked = [call for call in machine.calls() if call.startswith("ask")]
    assert asked == [
        f"ask @default sparsebak.Restore+work+settings+{session}",
        f"ask work sparsebak.Restore+work+settings+{session}",
        f"ask work sparsebak.Restore+work+private+{session}",
    ]
    assert site.contents() == before and site.qubesd.qubes["work"].tags >= {"sparsebak"}
    assert cli.main(["restore", "dom0/config"]) == 0
    assert cli.main(["backup", "--all"]) == 0
    assert list(site.images().values())[-1] == before


def test_what_policy_does_not_allow(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    site = machine.site
    site.qubesd.qubes["vault"].tags.clear()
    assert cli.main(["backup"]) == 3  # some were, vault was not
    assert "vault/private was not backed up" in capsys.readouterr().err
    site.qubesd.qubes[BACKUP_VM].tags.clear()
    assert cli.main(["backup"]) == 5
    assert "policy refused" in capsys.readouterr().err

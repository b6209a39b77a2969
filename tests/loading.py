# SPDX-License-Identifier: GPL-2.0-or-later
"""Which modules of ours calls load, each in a process of its own as qrexec starts them: what ``make
audit`` says of a kind of machine is held against it.
"""

import os
import random
import sys
from pathlib import Path

import pytest

from backup_vm.agent.client import Agent
from backup_vm.agent.transport.local import LocalTransport
from tests.kit import Site
from tools import audit, audited

_PYTHON = """#!/bin/sh
for service; do :; done
{environment}
exec {python} -X importtime "$@" 2>>{folder}/"$service"
"""


def check(site: Site, machine: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Two backups and a restore of what differs: no call of such a machine loads what the audit
    says that it never does, and only a Restore what is for it. ``folder`` is made for what they
    say of it.
    """
    found = _loaded(site, folder, patch)
    assert {"Snapshot", "Extract", "Commit", "Restore"} <= found.keys()
    for service, modules in found.items():
        reached = audit.reachable(audited.MACHINES[machine], restore=service == "Restore")
        assert len(modules) > 20 and modules <= reached, (service, modules - reached)


def _loaded(site: Site, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, set[Path]]:
    """Modules by service."""
    folder.mkdir()
    python = folder / "python"
    kept = {name: os.environ[name] for name in ("LVM_SYSTEM_DIR",) if name in os.environ}
    words = {"python": sys.executable, "folder": folder}
    words["environment"] = "\n".join(f"export {name}={value}" for name, value in kept.items())
    python.write_text(_PYTHON.format(**words))
    python.chmod(0o755)
    patch.setattr(sys, "executable", str(python))
    agent = Agent(LocalTransport(site.config, "backup-vm"))
    patch.setattr(site, "agent", lambda *_, **__: agent)
    rng = random.Random(5)
    for _ in range(2):
        site.backup(agent=agent)
        site.disturb(rng)
    site.restore()
    python.unlink()
    return {path.name: _modules(path) for path in folder.iterdir()}


def _modules(report: Path) -> set[Path]:
    """Those named in what Python prints of its imports: a line for each, the name at its end."""
    names = {line.split("|")[-1].strip() for line in report.read_text().splitlines()}
    places = [audit.ROOT.joinpath(*name.split(".")) for name in names]
    files = {path for one in places for path in (one.with_suffix(".py"), one / "__init__.py")}
    return files & set(audit.modules())

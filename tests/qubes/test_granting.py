# SPDX-License-Identifier: GPL-2.0-or-later
"""A grant on Qubes OS: dom0 asks the backup VM for the records, by a command of its own there."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backup_vm import cli as vm
from dom0_agent.admin import cli, granting
from tests.qubes.kit import BACKUP_VM, QubesSite
from wire.grants import Grant

BIN = Path(sys.executable).parent


def decoded(service: str) -> list[str]:
    """The command that qubes.VMExec runs for an argument: parts by ``+``, ``--`` for a dash."""
    name, *parts = service.split("+")
    assert name == "qubes.VMExec"
    return [part.replace("--", "-") for part in parts]


@pytest.fixture
def asked(qubes: QubesSite, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Commands in the backup VM really run, with its settings; which and as whom is noted."""
    import qubesadmin.vm  # type: ignore[import-not-found,unused-ignore]

    seen: list[Any] = []
    settings = qubes.root / "config.toml"
    settings.write_text(f'archive = "{qubes.archive}"\n')

    def run_service(self: Any, service: str, **named: Any) -> "subprocess.Popen[bytes]":
        user = named.pop("user")
        program, *words = decoded(service)
        seen.append((str(self.name), user, program, *words))
        command = [BIN / program, *words, "--config", settings]
        return subprocess.Popen(command, env={"PATH": os.environ["PATH"]}, **named)

    monkeypatch.setattr(qubesadmin.vm.QubesVM, "run_service", run_service, raising=False)
    return seen


def grant(site: QubesSite, *words: str) -> int:
    return cli.main(["--config", str(site.config), "grant", *words])


def test_dom0_asks_the_backup_vm(
    qubes: QubesSite, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    qubes.backup()
    path = qubes.root / "grant"
    assert grant(qubes, "work", "-o", str(path)) == 0
    found = Grant.parse(path.read_bytes())
    assert [record.name for record in found.records] == ["work/private"]
    assert asked == [(BACKUP_VM, "user", "sparsebak", "-q", "records", found.volume_id.hex())]
    assert "opens chunks of other" not in capsys.readouterr().err
    out = qubes.root / "out.img"
    words = ["assemble", "work/private", "-o", str(out), "--grant", str(path)]
    assert vm.main(["--archive", str(qubes.archive), *words]) == 0
    assert out.read_bytes() == qubes.contents()
    assert grant(qubes, "nobody", "-o", str(qubes.root / "none")) == 1
    assert not (qubes.root / "none").exists()


def test_a_backup_vm_that_never_ends(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import qubesadmin.vm

    started: list[subprocess.Popen[bytes]] = []

    def run_service(self: Any, service: str, user: str, **named: Any) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen(["sleep", "60"], **named))
        return started[-1]

    monkeypatch.setattr(qubesadmin.vm.QubesVM, "run_service", run_service, raising=False)
    monkeypatch.setattr(granting, "PATIENCE", 0.2)
    assert grant(qubes, "work", "-o", str(qubes.root / "grant")) == 1
    assert "gave no records" in capsys.readouterr().err
    assert started[0].returncode is not None and not (qubes.root / "grant").exists()

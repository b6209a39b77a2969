# SPDX-License-Identifier: GPL-2.0-or-later
"""What short commands and calls import, and how often a run in which nothing changed waits for the
disk. Counted, for times differ from machine to machine.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit import GRAIN, Site, fill

ROOT = Path(__file__).parent.parent.parent
OWN = {"backup_vm", "common", "dom0_agent", "wire"}
LONG = {
    *("asyncio", "concurrent", "construct", "dataclasses", "inspect", "logging", "numpy"),
    *("rich", "shutil", "tempfile"),
}
"""Each takes from two milliseconds to forty."""
COMMAND = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); sys.executable = sys.argv.pop(1);"
    "from backup_vm.cli import main; sys.exit(main())"
)
PYTHON = '#!/bin/sh\nexec {} -X importtime "$@" 2>"{}/$3"\n'
"""Says what each service imports; its name is the third word: -I, the program, the name."""


@pytest.fixture
def full(site: Site) -> Site:
    """A site with a session."""
    fill(site.image(), 4 * GRAIN)
    site.backup()
    return site


def imported(said: str) -> set[str]:
    """Names of modules, from what -X importtime prints."""
    lines = [line for line in said.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines} - {"imported package"}


def of(modules: set[str], packages: set[str]) -> set[str]:
    """Those of some packages."""
    return {name for name in modules if name.partition(".")[0] in packages}


def command(site: Site, *words: str) -> tuple[set[str], dict[str, set[str]]]:
    """What a command imports, and each service that it calls."""
    calls, python = site.root / "imports", site.root / "python"
    calls.mkdir()
    python.write_text(PYTHON.format(sys.executable, calls))
    python.chmod(0o755)
    place = {"SPARSEBAK_ARCHIVE": str(site.archive), "SPARSEBAK_AGENT": f"local:{site.config}"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", COMMAND, ROOT, python, *words],
        env={**os.environ, **place, "XDG_CONFIG_HOME": str(site.root)},
        capture_output=True,
        text=True,
        check=True,
    )
    return imported(done.stderr), {one.name: imported(one.read_text()) for one in calls.iterdir()}


def test_a_backup_in_which_nothing_changed(full: Site) -> None:
    manager, calls = command(full, "backup", "--caller", "backup-vm")
    assert of(manager, LONG) == set() and len(of(manager, OWN)) <= 105
    assert calls.keys() == {"List", "Snapshot", "Extract", "Commit"}
    for service, modules in calls.items():
        assert of(modules, LONG) == set(), service
        assert len(of(modules, OWN)) <= 60, service


@pytest.mark.parametrize("words", [("list", "--no-space"), ("files", "ls", "--help")])
def test_what_only_looks(full: Site, words: tuple[str, ...]) -> None:
    few = LONG - {"shutil"}
    if "--help" in words:  # for which Python 3.14 looks at what colours there are
        few -= {"dataclasses", "inspect"}
    assert of(command(full, *words, "--caller", "backup-vm")[0], few) == set()


def test_the_version() -> None:
    for main in ("backup_vm.cli", "dom0_agent.admin.cli"):
        code = f"from {main} import main; main(['--version'])"
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(of(imported(done.stderr), OWN)) <= 25, main


def test_waits_for_the_disk(full: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """On both sides together. Snapshot, Extract and Commit each replace the state, a file and its
    folder; the source ``file`` copies the image, Extract writes its log, the manager the session.
    """
    waits: list[str] = []

    def counted(whole: Callable[[int], None]) -> Callable[[int], None]:
        def wait(fd: int) -> None:
            waits.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
            whole(fd)

        return wait

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(os, "fdatasync", counted(os.fdatasync))
    full.backup()
    assert waits.count("state.json.tmp") == 3 and len(waits) == 3 * 2 + 2 + 1 + 2, waits

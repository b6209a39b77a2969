"""The systemd units, by systemd's own measure, and what happens to snapshots when the package goes."""

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import GRAIN, Site, fill

ROOT = Path(__file__).parent.parent.parent
SERVICES = sorted((ROOT / "systemd").rglob("*.service"))
EXPOSURE = 4.0
"""What systemd-analyze security may say at most; 9.6 is a unit with nothing set. Root, LVM and device nodes cost the rest."""


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_a_unit_may_little(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    last = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()[
        -1
    ]
    assert float(last.split(":")[1].split()[0]) <= EXPOSURE, last


def test_the_monitor_yields_to_everything_else() -> None:
    text = (ROOT / "systemd/dom0/sparsebak-monitor.service").read_text()
    assert "IOSchedulingClass=idle" in text and "Nice=19" in text and "--quiet" in text
    assert "OnUnitActiveSec=10min" in (ROOT / "systemd/dom0/sparsebak-monitor.timer").read_text()
    for timer in (ROOT / "systemd").rglob("sparsebak-backup*.timer"):
        assert "Persistent=true" in timer.read_text()  # a missed run is made up for


def remove(site: Site, terminal: str) -> subprocess.CompletedProcess[str]:
    agent = site.root / "agent"
    code = "from dom0_agent.cli import main; raise SystemExit(main())"
    agent.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    agent.chmod(0o755)
    environment = {
        **os.environ,
        "SPARSEBAK_AGENT_COMMAND": str(agent),
        "SPARSEBAK_AGENT_CONFIG": str(site.config),
    }
    environment |= {"SPARSEBAK_TERMINAL": terminal, "PYTHONPATH": str(ROOT)}
    command = [str(ROOT / "dom0_agent/on-removal")]
    return subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_snapshots_go_only_when_somebody_says_so(site: Site, answer: str, left: int) -> None:
    fill(site.image(), 10 * GRAIN)
    site.backup()
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = remove(site, os.ttyname(theirs))
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0 and len(site.snapshots()) == left
    assert ("snapshots stay" in done.stderr) == bool(left)


def test_with_nobody_to_ask_snapshots_stay(site: Site) -> None:
    fill(site.image(), 10 * GRAIN)
    site.backup()
    assert "forget --all" in remove(site, str(site.root / "no-terminal")).stderr
    assert len(site.snapshots()) == 1

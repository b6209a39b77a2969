# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests do with the machines: a timer's time comes, a qube writes, a unit is changed.

A timer's time comes so: one that makes up for what was missed is told that it last ran two days
ago; another gets one more time, now. The lines of the units stay.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kit import change
from tests.system.machine import Machine
from tests.system.world import World

ROOT = Path(__file__).parent.parent.parent
NOW = "[Timer]\nOnActiveSec=0\n"
MISSED = "[Timer]\nRandomizedDelaySec=0\n"
STAMPS = Path("/var/lib/systemd/timers")


def units(world: World) -> list[tuple[Machine, str]]:
    """Every unit of the project, and where it is."""
    found = sorted(p for p in (ROOT / "systemd").rglob("*.*") if p.suffix != ".conf")
    return [(world.vm if path.parent.name == "vm" else world.dom0, path.name) for path in found]


def fire(machine: Machine, timer: str) -> str:
    """Enable a timer, have its time come, and wait for its service: the result."""
    service = timer.replace(".timer", ".service")
    before = machine.shown(service, "InvocationID")
    late = machine.shown(timer, "Persistent") == "yes"
    folder = machine.root / f"etc/systemd/system/{timer}.d"
    folder.mkdir(exist_ok=True)
    (folder / "now.conf").write_text(MISSED if late else NOW)
    if late:
        machine.run("mkdir", "-p", str(STAMPS))
        machine.run("touch", "--date=2 days ago", str(STAMPS / f"stamp-{timer}"))
    try:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", timer)
        machine.run("systemctl", "restart", timer)
        return machine.done(service, before)
    finally:
        machine.run("systemctl", "disable", "--now", timer)
        (folder / "now.conf").unlink()
        machine.run("systemctl", "daemon-reload")


def write(image: Path) -> None:
    """What a qube may do to its disk between two backups."""
    change(image, random.Random(image.stat().st_mtime_ns), resize=False)


def listening(world: World, on: bool) -> None:
    """Whether the resident agent answers calls, or the service files do."""
    world.dom0.run("systemctl", "enable" if on else "disable", "--now", "sparsebak-agent.socket")
    if not on:
        world.dom0.run("systemctl", "stop", "sparsebak-agent.service")


@contextmanager
def changed(machine: Machine, unit: str, text: str) -> Iterator[None]:
    """With a drop-in, as by ``systemctl edit``."""
    folder = machine.root / f"etc/systemd/system/{unit}.d"
    folder.mkdir(exist_ok=True)
    (folder / "override.conf").write_text(text)
    machine.run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        (folder / "override.conf").unlink()
        machine.run("systemctl", "daemon-reload")

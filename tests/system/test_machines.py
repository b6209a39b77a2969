# SPDX-License-Identifier: GPL-2.0-or-later
"""What the units do where systemd starts them, on two machines with the packages as installed.

A timer's time comes so: one of a calendar, which makes up for what was missed, is told that it last
ran two days ago; one that counts from boot gets one more time, now. The lines of the units stay.
"""

import json
import os
import random
from pathlib import Path

import pytest

from tests.kit import change
from tests.system.machine import Machine
from tests.system.world import BACKUP_VM, World, built
from wire import VERSION

ROOT = Path(__file__).parent.parent.parent
NOW = "[Timer]\nOnActiveSec=0\n"
MISSED = "[Timer]\nRandomizedDelaySec=0\n"
STAMPS = Path("/var/lib/systemd/timers")
SERVICE_FILE, SOCKET = "a service file", "the resident agent"


def units(world: World) -> list[tuple[Machine, str]]:
    """Every unit of the project, and where it is."""
    found = sorted((ROOT / "systemd").rglob("*.*"))
    return [(world.vm if path.parent.name == "vm" else world.dom0, path.name) for path in found]


def fire(machine: Machine, timer: str) -> str:
    """Enable a timer, have its time come, and wait for its service: the result."""
    service = timer.replace(".timer", ".service")
    before = machine.shown(service, "InvocationID")
    calendar = machine.shown(timer, "TimersCalendar") != ""
    folder = machine.root / f"etc/systemd/system/{timer}.d"
    folder.mkdir(exist_ok=True)
    (folder / "now.conf").write_text(MISSED if calendar else NOW)
    if calendar:
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


def test_systemd_understands_every_unit(world: World) -> None:
    for machine, unit in units(world):
        said = machine.run("systemd-analyze", "verify", "--man=no", unit)
        assert "sparsebak" not in said, said
        for line in (ROOT / "systemd").rglob(unit):
            for text in line.read_text().splitlines():
                if text.startswith("OnCalendar="):
                    machine.run("systemd-analyze", "calendar", text.partition("=")[2])


def test_every_timer_waits_for_its_time(world: World) -> None:
    timers = [(machine, unit) for machine, unit in units(world) if unit.endswith(".timer")]
    for machine, timer in timers:
        machine.run("systemctl", "enable", "--now", timer)
    for machine, timer in timers:
        assert machine.shown(timer, "ActiveState") == "active"
        listed = machine.run("systemctl", "list-timers", timer, "-o", "json")
        (waiting,) = json.loads(listed)
        assert waiting["next"] or waiting["left"], timer
        machine.run("systemctl", "disable", "--now", timer)


@pytest.mark.parametrize("answers", [SERVICE_FILE, SOCKET])
def test_the_backup_vms_timer_makes_a_backup(world: World, answers: str) -> None:
    listening(world, answers == SOCKET)
    write(world.image("work"))
    before = world.sessions("work/private")
    assert fire(world.vm, "sparsebak-backup.timer") == "success"
    assert world.sessions("work/private") == before + 1
    running = world.dom0.shown("sparsebak-agent.service", "ActiveState")
    assert running == ("active" if answers == SOCKET else "inactive")


def test_without_its_qvm_service_the_backup_vms_timer_does_nothing(world: World) -> None:
    switch = "/run/qubes-service/sparsebak"
    world.vm.run("rm", switch)
    before = world.sessions("work/private")
    world.vm.run("systemctl", "start", "sparsebak-backup.service")
    assert world.vm.shown("sparsebak-backup.service", "ConditionResult") == "no"
    assert world.sessions("work/private") == before
    world.vm.run("touch", switch)


def test_a_failed_backup_is_told_in_the_backup_vm(world: World) -> None:
    world.vm.run("umount", "/mnt")
    before = world.vm.shown("sparsebak-failed.service", "InvocationID")
    assert fire(world.vm, "sparsebak-backup.timer") == "exit-code"
    assert world.vm.done("sparsebak-failed.service", before) == "success"
    assert world.told(world.vm)[-1] == "Backup failed: See: journalctl -u sparsebak-backup"
    assert "/mnt is not mounted" in world.vm.journal("sparsebak-backup")


def test_a_backup_that_is_stopped_is_no_failed_one(world: World) -> None:
    """As at a shutdown in the middle of it: SIGTERM ends it clean, and nobody is told."""
    told = len(world.told(world.vm))
    world.answer(True)
    world.vm.run("systemctl", "start", "--no-block", "sparsebak-backup.service")
    world.vm.run("systemctl", "stop", "sparsebak-backup.service")
    assert world.vm.shown("sparsebak-backup.service", "Result") == "success"
    assert len(world.told(world.vm)) == told
    assert fire(world.vm, "sparsebak-backup.timer") == "success"


def test_dom0s_timer_starts_the_backup_vm_and_shuts_it_down(world: World) -> None:
    write(world.image("work"))
    before = world.sessions("work/private")
    world.power("Shutdown")
    assert world.qubes[BACKUP_VM].state == "Halted"
    assert fire(world.dom0, "sparsebak-backup-vm.timer") == "success"
    assert world.qubes[BACKUP_VM].state == "Halted" and not world.vm.running
    world.power("Start")
    assert world.sessions("work/private") == before + 1


def test_a_backup_that_dom0_asks_for_and_that_fails_is_told_in_dom0(world: World) -> None:
    world.vm.run("umount", "/mnt")
    assert fire(world.dom0, "sparsebak-backup-vm.timer") == "exit-code"
    assert world.told(world.dom0)[-1].startswith(f"Backup failed: sparsebak in {BACKUP_VM} ended")
    assert world.vm.running  # it was before


def test_timers_in_dom0_see_a_new_qube(world: World) -> None:
    state = world.dom0.root / "var/lib/sparsebak"
    world.new_qube("fresh")
    assert fire(world.dom0, "sparsebak-monitor.timer") == "success"
    assert "sparsebak" in world.qubes["fresh"].tags
    assert "fresh/private" in (state / "catalog.json").read_text()
    assert fire(world.dom0, "sparsebak-settings.timer") == "success"
    assert any(path.name.startswith("fresh") for path in (state / "settings").iterdir())
    assert fire(world.dom0, "sparsebak-check.timer") == "exit-code"
    assert "fresh/private: never backed up" in world.dom0.journal("sparsebak-check")
    assert world.told(world.dom0)[-1].startswith("Backup is late: ")
    assert fire(world.vm, "sparsebak-backup.timer") == "success"
    assert fire(world.dom0, "sparsebak-check.timer") == "success"


@pytest.mark.parametrize("answers", [SERVICE_FILE, SOCKET])
def test_a_restore_and_what_the_user_says(world: World, answers: str) -> None:
    listening(world, answers == SOCKET)
    image = world.image("work")
    assert fire(world.vm, "sparsebak-backup.timer") == "success"
    saved = image.read_bytes()
    write(image)
    changed = image.read_bytes()
    restore = ("sparsebak", "restore", "work/private")
    world.answer(False)
    code, said = world.vm.outcome(*restore, user="user")
    assert code == 5 and "policy refused" in said and image.read_bytes() == changed
    world.answer(True)
    world.vm.run(*restore, user="user")
    assert image.read_bytes() == saved
    assert image.with_name("private.img.revision").read_bytes() == changed
    assert world.asked()[-1].startswith("ask work sparsebak.Restore+work+private+")
    assert "work/private now has the contents" in world.told(world.dom0)[-1]


def test_the_resident_agent_has_what_its_unit_leaves_it_and_no_more(world: World) -> None:
    listening(world, True)
    world.vm.run("sparsebak", "list", user="user")
    pid = world.dom0.shown("sparsebak-agent.service", "MainPID")
    of = {}
    for process in (pid, "1"):
        lines = world.dom0.run("cat", f"/proc/{process}/status").splitlines()
        of[process] = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    status, init = of[pid], of["1"]
    named = world.dom0.shown("sparsebak-agent.service", "CapabilityBoundingSet").split()
    kept, whole = int(status["CapBnd"], 16), int(init["CapBnd"], 16)
    # a container's init may have less than a machine's
    assert len(named) - 1 <= kept.bit_count() <= len(named) < whole.bit_count()
    assert status["CapEff"] == status["CapBnd"]
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_an_upgrade_leaves_the_administrators_choices(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    listening(world, True)
    world.dom0.run("systemctl", "enable", "--now", "sparsebak-monitor.timer")
    world.vm.run("systemctl", "enable", "--now", "sparsebak-backup.timer")
    world.vm.run("sparsebak", "list", user="user")
    resident = world.dom0.shown("sparsebak-agent.service", "InvocationID")
    newer = f"{VERSION}.1"
    packages = built(tmp_path_factory.mktemp("newer"), newer)
    world.install_in_dom0(packages["dom0"], packages["dom0-settings"])
    world.vm.run("apt-get", "install", "-qy", world.place(packages["vm"]))
    assert newer in world.dom0.run("sparsebak-agent", "--version")
    assert newer in world.vm.run("sparsebak", "--version")
    for machine, timer in (
        (world.dom0, "sparsebak-monitor.timer"),
        (world.vm, "sparsebak-backup.timer"),
    ):
        assert machine.shown(timer, "ActiveState") == "active"
        assert machine.shown(timer, "UnitFileState") == "enabled"
        assert machine.shown(timer, "NeedDaemonReload") == "no"
    assert fire(world.vm, "sparsebak-backup.timer") == "success"
    # a process of the old version, which would import modules of the new one, answers no more
    assert world.dom0.shown("sparsebak-agent.service", "InvocationID") != resident


def test_a_removal_stops_everything_and_keeps_keys(world: World) -> None:
    listening(world, True)
    timers = [(machine, unit) for machine, unit in units(world) if unit.endswith(".timer")]
    for machine, timer in timers:
        machine.run("systemctl", "enable", "--now", timer)
    snapshots = len(list(world.pool.rglob(".sparsebak/**/*")))
    said = world.dom0.run("rpm", "-e", "--nodeps", "sparsebak-dom0-settings", "sparsebak-dom0")
    assert "its snapshots stay" in said
    world.vm.run("apt-get", "purge", "-qy", "sparsebak-vm")
    for machine, unit in units(world):
        assert machine.shown(unit, "ActiveState") in ("inactive", "failed"), unit
    for machine in (world.dom0, world.vm):
        links = (machine.root / "etc/systemd/system").glob("*.wants/sparsebak*")
        assert not [link for link in links if os.path.lexists(link)]
        left = list((machine.root / "usr").rglob("*sparsebak*"))
        assert not left, left
    assert list((world.dom0.root / "var/lib/sparsebak").rglob("*.key")) or list(
        (world.dom0.root / "var/lib/sparsebak").iterdir()
    )
    assert len(list(world.pool.rglob(".sparsebak/**/*"))) == snapshots > 0

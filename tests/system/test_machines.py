# SPDX-License-Identifier: GPL-2.0-or-later
"""What the units do where systemd starts them, on two machines with the packages as installed."""

import fcntl
import json
import os
import re

import pytest

from tests.system.acts import ROOT, changed, fire, listening, units, write
from tests.system.world import ARCHIVE, BACKUP_VM, World, built
from wire import VERSION

METERED = "#!/bin/sh\necho u 1\n"
"""What busctl says where NetworkManager calls the link metered."""
SERVICE_FILE, SOCKET = "a service file", "the resident agent"


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
        # what counts time stands still while a machine sleeps
        assert machine.shown(timer, "TimersCalendar")
        assert not machine.shown(timer, "TimersMonotonic")
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


def test_a_backup_that_waits_for_a_better_moment_is_no_failed_one(world: World) -> None:
    told = [len(world.told(machine)) for machine in (world.vm, world.dom0)]
    before, busctl = world.sessions("work/private"), world.vm.root / "usr/local/bin/busctl"
    settings = world.vm.root / "home/user/.config/sparsebak/config.toml"
    usual = settings.read_text()
    busctl.write_text(METERED)
    busctl.chmod(0o755)
    settings.write_text(f"not_metered = true\n{usual}")
    try:
        assert fire(world.vm, "sparsebak-backup.timer") == "success"
        assert fire(world.dom0, "sparsebak-backup-vm.timer") == "success"
    finally:
        settings.write_text(usual)
        busctl.unlink()
    assert len(world.told(world.vm)) == told[0] and world.sessions("work/private") == before
    (said,) = world.told(world.dom0)[told[1] :]
    assert said.startswith(f"Backup put off: {BACKUP_VM} waits for")


PAGE = """
import http.client, re, signal, subprocess
page = subprocess.Popen(["sparsebak", "ui", "--no-open"], stdout=subprocess.PIPE, text=True)
where, path = re.fullmatch(r"http://([^/]+)(/.*)\\n", page.stdout.readline()).groups()
def get(path, headers={}):
    connection = http.client.HTTPConnection(where, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.headers["Set-Cookie"], answer.read().decode()
cookie, text = get(path)
key = re.search(r'name="key" content="([^"]+)"', text)[1]
secrets = {"Cookie": cookie.partition(";")[0], "X-Sparsebak-Key": key}
print(get("/api/status", secrets)[1])
page.send_signal(signal.SIGINT)
page.wait()
"""
"""What the page of the backup VM is told, as its user opens it there."""


def test_status_and_the_page_say_when_the_next_backup_is(world: World) -> None:
    """As systemd tells of the timer, by the packages of the distribution."""
    timer = "sparsebak-backup.timer"

    def told() -> tuple[str | None, str | None, bool]:
        status = json.loads(world.vm.run("sparsebak", "status", "--json", user="user"))
        page = json.loads(world.vm.run("python3", "-c", PAGE, user="user"))
        return status["next_run"], page["status"]["next_run"], page["systemd"]

    assert told() == (None, None, True)
    world.vm.run("systemctl", "enable", "--now", timer)
    try:
        when = world.vm.shown(timer, "NextElapseUSecRealtime")
        assert re.fullmatch(r"\w+ \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+", when)
        assert told() == (when, when, True)
    finally:
        world.vm.run("systemctl", "disable", "--now", timer)
    assert told() == (None, None, True)


def test_a_share_of_the_archive_is_checked_each_night(world: World) -> None:
    """And damage is told, that night and each one after it, until it is mended."""
    told = len(world.told(world.vm))
    assert fire(world.vm, "sparsebak-scrub.timer") == "success"
    status = json.loads(world.vm.run("sparsebak", "status", "--json", user="user"))
    assert status["part_scrubbed"]["ok"]
    (pack, *_) = (world.disk / ARCHIVE.removeprefix("/mnt/")).glob("packs/*/*.pack")
    sound = pack.read_bytes()
    pack.write_bytes(sound[:-20] + bytes([sound[-20] ^ 1]) + sound[-19:])
    world.vm.outcome("sparsebak", "scrub", user="user")
    for _ in range(2):
        before = world.vm.shown("sparsebak-scrub-failed.service", "InvocationID")
        assert fire(world.vm, "sparsebak-scrub.timer") == "exit-code"
        assert world.vm.done("sparsebak-scrub-failed.service", before) == "success"
    assert (
        world.told(world.vm)[told:]
        == ["Check of the archive failed: See: journalctl -u sparsebak-scrub"] * 2
    )
    assert pack.name in world.vm.journal("sparsebak-scrub")
    pack.write_bytes(sound)
    assert fire(world.vm, "sparsebak-scrub.timer") == "success"


def test_all_archives_at_a_place_are_kept(world: World) -> None:
    """By the account that they belong to, which is set as docs/linux.md says; the package brings
    the one that is used by default.
    """
    assert "sparsebak-upkeep" in world.vm.run("getent", "passwd", "sparsebak-upkeep")
    folder = world.vm.root / "etc/sparsebak"
    folder.mkdir(exist_ok=True)
    metrics, page = (f"/var/lib/sparsebak-upkeep/upkeep.{end}" for end in ("prom", "html"))
    rules = folder / "upkeep.toml"
    rules.write_text(f'place = "/mnt"\nmetrics = "{metrics}"\nreport = "{page}"\n')
    try:
        with changed(world.vm, "sparsebak-upkeep.service", "[Service]\nUser=user\n"):
            result = fire(world.vm, "sparsebak-upkeep.timer")
            assert result == "success", world.vm.journal("sparsebak-upkeep")
    finally:
        rules.unlink()
    assert "upkeep_exit_code" in world.vm.run("cat", metrics)
    assert "laptop.sparsebak" in world.vm.run("cat", page)


def test_a_check_does_nothing_while_the_archive_is_in_use(world: World) -> None:
    with open(world.disk / ARCHIVE.removeprefix("/mnt/") / "archive.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert fire(world.vm, "sparsebak-scrub.timer") == "success"
    assert "in use" in world.vm.journal("sparsebak-scrub")


def test_a_check_is_changed_as_the_page_says(world: World) -> None:
    """systemd understands what docs/everyday.md has somebody type."""
    page = (ROOT / "docs/everyday.md").read_text()
    (text,) = re.findall(r"^```\n(\[Unit\]\n[^`]*ExecStart=[^`]*)^```", page, re.MULTILINE)
    with changed(world.vm, "sparsebak-scrub.service", text):
        verify = ("systemd-analyze", "verify", "--man=no", "sparsebak-scrub.service")
        assert "sparsebak" not in world.vm.run(*verify)


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


def test_the_monitor_removes_the_disposable_of_an_open_that_was_killed(world: World) -> None:
    left, told = world.add("disp7", "DispVM", "vm-pool"), len(world.told(world.dom0))
    folder = world.dom0.root / "var/lib/sparsebak/opening"
    folder.mkdir(exist_ok=True)
    (folder / "disp7").write_text(left.uuid)
    assert fire(world.dom0, "sparsebak-monitor.timer") == "success"
    assert "disp7" not in world.qubes and not list(folder.iterdir())
    (said,) = world.told(world.dom0)[told:]
    assert said.startswith("Disposable removed: disp7 is removed")


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
    state = world.dom0.root / "var/lib/sparsebak"
    keys = {path: path.read_bytes() for path in state.rglob("key")}
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
    assert {path: path.read_bytes() for path in state.rglob("key")} == keys != {}
    assert len(list(world.pool.rglob(".sparsebak/**/*"))) == snapshots > 0

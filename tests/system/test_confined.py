# SPDX-License-Identifier: GPL-2.0-or-later
"""What a unit's confinement leaves is enough for what it has to do, and not more than it needs."""

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.confined import capabilities
from tests.conftest import cannot
from tests.system.acts import changed, fire, listening, write
from tests.system.world import World

DISK, CONTAINER = "sda", "sdb"
"""What the machine's built-in disks are called: one has a partition table, one is a LUKS
container."""
SECRET = b"passphrase"


def _run(*words: str | Path, stdin: bytes = b"") -> bytes:
    return subprocess.run(words, input=stdin, stdout=subprocess.PIPE, check=True).stdout


@pytest.fixture
def disks(world: World, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Two disks that dom0 takes for its own: their devices on this machine, by name.

    Loop devices are hardware only by sysfs, of which dom0 sees another one here.
    """
    found: dict[str, str] = {}
    for program in ("cryptsetup", "sfdisk", "losetup"):
        if shutil.which(program) is None:
            cannot(f"{program} is not installed")
    try:
        for name in (DISK, CONTAINER):
            file = tmp_path / name
            file.touch()
            with open(file, "r+b") as image:
                image.truncate(64 << 20)
            device = _run("losetup", "--find", "--show", file).decode().strip()
            found[name] = device
            number = Path(f"/sys/block/{Path(device).name}/dev").read_text().strip()
            world.dom0.run("mknod", "-m", "600", f"/dev/{name}", "b", *number.split(":"))
            world.dom0.run("mkdir", "-p", f"/run/blocks/{name}/device")
        _run("sfdisk", "--quiet", found[DISK], stdin=b"label: gpt\n,8M,L\n,,L\n")
        format = ("cryptsetup", "luksFormat", "--batch-mode", "--pbkdf=pbkdf2")
        _run(*format, "--pbkdf-force-iterations=1000", found[CONTAINER], stdin=SECRET)
        world.dom0.run("mount", "--bind", "/run/blocks", "/sys/block")
        yield found
    finally:
        world.dom0.outcome("umount", "/sys/block")
        world.dom0.outcome("rm", "-f", *(f"/dev/{name}" for name in found))
        for device in found.values():
            _run("losetup", "--detach", device)


def test_the_settings_unit_saves_what_a_dead_machine_needs(
    world: World, disks: dict[str, str], tmp_path: Path
) -> None:
    """rpm, sfdisk and cryptsetup run in its confinement, and what they say is in the archive."""
    config = world.dom0.root / "etc/sparsebak/agent.toml"
    usual = config.read_text()
    assert "[qubes]\n" in usual
    config.write_text(usual.replace("[qubes]\n", "[qubes]\nluks_headers = true\n"))
    (world.dom0.root / "boot/vmlinuz").touch()
    saved = world.dom0.root / "var/lib/sparsebak/settings/dom0.config"
    saved.unlink(missing_ok=True)  # else it is saved every six hours
    try:
        result = fire(world.dom0, "sparsebak-settings.timer")
        assert result == "success", world.dom0.journal("sparsebak-settings")
        world.vm.run("sparsebak", "backup", "dom0", user="user")
    finally:
        config.write_text(usual)
        world.dom0.run("sparsebak-agent", "volumes")  # the list is of the configuration before
    passphrase = world.disk / "passphrase"
    shutil.copy(world.shared / "passphrase", passphrase)
    out = ("-o", "/disk/config.tar", "--passphrase-file", "/disk/passphrase")
    world.vm.run("sparsebak", "--archive", "/mnt/laptop.sparsebak", "assemble", "dom0/config", *out)
    with tarfile.open(world.disk / "config.tar") as tar:
        names = tar.getnames()
        left_out = tar.extractfile("sparsebak-left-out.txt")
        assert left_out is not None
        reasons = left_out.read().decode().splitlines()
        contents = {
            name: file.read()
            for name in names
            if name.startswith("sparsebak-machine/") and (file := tar.extractfile(name))
        }
    assert [line for line in reasons if "sparsebak-machine" in line] == [
        "sparsebak-machine/qubes-prefs.txt: qubes-prefs is not installed"
    ], reasons
    assert b"sparsebak-dom0-" in contents["sparsebak-machine/packages.txt"]
    table = contents[f"sparsebak-machine/partitions/{DISK}.sfdisk"].decode()
    assert (
        table.replace(f"/dev/{DISK}", disks[DISK]).split("\n", 4)[-1].split()
        == (_run("sfdisk", "--dump", disks[DISK]).decode().replace(f"{disks[DISK]}p", disks[DISK]))
        .split("\n", 4)[-1]
        .split()
    )
    (tmp_path / "header").write_bytes(contents[f"sparsebak-machine/luks/{CONTAINER}.header"])
    _run("wipefs", "--quiet", "--all", disks[CONTAINER])
    restore = ("cryptsetup", "luksHeaderRestore", "--batch-mode", disks[CONTAINER])
    _run(*restore, "--header-backup-file", tmp_path / "header")
    _run("cryptsetup", "open", "--test-passphrase", disks[CONTAINER], stdin=SECRET)


def test_the_resident_agent_ends_when_nobody_calls(world: World) -> None:
    """And starts again for the next call. Two minutes are made shorter, by its own option."""
    listening(world, True)
    world.dom0.run("systemctl", "stop", "sparsebak-agent.service")
    unit = "sparsebak-agent.service"
    text = "[Service]\nExecStart=\nExecStart=/usr/bin/sparsebak-agent serve --idle 1\n"
    with changed(world.dom0, unit, text):
        for _ in range(2):
            before = world.dom0.shown(unit, "InvocationID")
            world.vm.run("sparsebak", "status", user="user")
            assert world.dom0.done(unit, before) == "success"
            assert world.dom0.shown(unit, "ExecMainStatus") == "0"
            assert world.dom0.shown("sparsebak-agent.socket", "SubState") == "listening"


@pytest.mark.parametrize("name", ["SETUID", "SETGID"])
def test_a_restore_needs_what_sudo_needs(world: World, name: str) -> None:
    """Without it the import script cannot write, the restore fails, and nothing has changed."""
    listening(world, True)
    unit, image = "sparsebak-agent.service", world.image("work")
    write(image)
    before = image.read_bytes()
    kept = " ".join(f"CAP_{one}" for one in capabilities() if one != name)
    text = f"[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet={kept}\n"
    with changed(world.dom0, unit, text):
        world.dom0.run("systemctl", "stop", unit)
        code, said = world.vm.outcome("sparsebak", "restore", "work/private", user="user")
        world.dom0.run("systemctl", "stop", unit)
    assert code == 5 and "cannot read or write" in said, said
    assert image.read_bytes() == before

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a dead machine is made of again: saved with dom0's configuration, and brought back by the
commands of docs/recovery.md, on real devices.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dom0_agent.admin import cli
from dom0_agent.admin.settings import machine
from dom0_agent.config import load
from tests.commands import Commands
from tests.conftest import cannot
from tests.kit import Site
from tests.qubes.kit import QubesSite

RECOVERY = Path(__file__).parent.parent.parent / "docs/recovery.md"
DISK, CONTAINER = "nvme0n1", "nvme0n1p3"
"""Names that the page has for a disk and for a partition."""
TABLE = "label: gpt\n,8M,L\n,,L\n"


def run(*words: str, stdin: str = "") -> str:
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def loops(tmp_path: Path, count: int) -> Iterator[list[str]]:
    """Names of loop devices of 64 MiB."""
    for program in ("sfdisk", "cryptsetup", "losetup"):
        if shutil.which(program) is None:
            cannot(f"{program} is not installed")
    if os.geteuid() != 0:
        cannot("loop devices need root")
    found = []
    try:
        for number in range(count):
            file = tmp_path / f"disk{number}"
            file.touch()
            os.truncate(file, 64 << 20)
            done = run("losetup", "--find", "--show", str(file))
            found.append(done.strip().removeprefix("/dev/"))
        yield found
    finally:
        for name in found:
            run("losetup", "--detach", f"/dev/{name}")


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A disk with a partition table, and one that is a LUKS container, which the agent is made to
    take for built-in.
    """
    for found in loops(tmp_path, 2):
        run("sfdisk", "--quiet", f"/dev/{found[0]}", stdin=TABLE)
        run(
            *("cryptsetup", "luksFormat", "--batch-mode", "--pbkdf=pbkdf2"),
            *("--pbkdf-force-iterations=1000", f"/dev/{found[1]}"),
            stdin="passphrase",
        )
        built_in = [Path("/sys/block") / name for name in found]
        monkeypatch.setattr(machine, "_built_in", built_in.copy)
        yield found


def opens(device: str) -> bool:
    words = ["cryptsetup", "open", "--test-passphrase", f"/dev/{device}"]
    return subprocess.run(words, input=b"passphrase", capture_output=True).returncode == 0


def described(qubes: QubesSite, tmp_path: Path, *options: str) -> None:
    """A configuration with one file of dom0 and the machine."""
    (tmp_path / "rules").write_text("rules\n")
    lines = qubes.config.read_text().replace("machine = false", "\n".join(options))
    lines = lines.replace("dom0_config = []", f'dom0_config = ["{tmp_path}/rules"]')
    qubes.config.write_text(lines)


def blocks(page: Path) -> list[str]:
    """The commands of a page, one text for each block."""
    return re.findall(r"^```\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def test_the_written_way_back_leads_back(
    qubes: QubesSite,
    disks: list[str],
    tmp_path: Path,
    commands_for: Callable[[Site], Commands],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    described(qubes, tmp_path, "luks_headers = true")
    qubes.backup()
    commands = commands_for(qubes)
    table = run("sfdisk", "--dump", f"/dev/{disks[0]}")
    for name in disks:
        with open(f"/dev/{name}", "r+b") as device:
            device.write(bytes(20 << 20))
            os.fsync(device.fileno())
    assert not opens(disks[1])
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.delenv("SPARSEBAK_AGENT")  # dom0 is gone
    (folder := tmp_path / "live").mkdir()
    (extract,) = [text for text in blocks(RECOVERY) if "config.tar" in text]
    (repair,) = [text for text in blocks(RECOVERY) if "luksHeaderRestore" in text]
    extract = extract.replace("DIR", str(qubes.archive)).replace(
        "-file F", f"-file {commands.passphrase}"
    )
    repair = repair.replace(CONTAINER, disks[1]).replace(DISK, disks[0])
    script = f"set -e\ncd {folder}\n{extract}{repair}"
    run("sh", "-c", script)
    assert (folder / str(tmp_path / "rules").lstrip("/")).read_text() == "rules\n"
    assert run("sfdisk", "--dump", f"/dev/{disks[0]}") == table
    assert opens(disks[1])
    assert "qubes-prefs is not installed" in (folder / "sparsebak-left-out.txt").read_text()


def test_headers_are_saved_only_when_asked_for(
    qubes: QubesSite, disks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described(qubes, tmp_path)
    qubes.backup()
    again = next(done for done in qubes.backup().done if done.qube == "dom0")
    assert again.stored == 0, "what did not change is the same"
    qubes.restore(name="dom0/config")
    capsys.readouterr()
    agent = ["--config", str(qubes.config), "settings"]
    assert cli.main([*agent, "show", "dom0"]) == 0
    shown = capsys.readouterr().out
    assert "dom0 has these files already." in shown and "sparsebak-machine/qubes-prefs" in shown
    folder = tmp_path / "out"
    assert cli.main([*agent, "extract", str(folder)]) == 0
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert f"partitions/{disks[0]}.sfdisk" in names and "packages.txt" in names
    assert not any(name.startswith("luks") for name in names)
    assert folder.stat().st_mode & 0o77 == 0
    assert cli.main([*agent, "extract", str(folder)]) == 1, "never over what is there"
    assert not list((load(qubes.config).state_dir / "settings").glob("luks-*"))


def test_nothing_that_a_qube_can_write_to_is_looked_at(tmp_path: Path) -> None:
    for (name,) in loops(tmp_path, 1):
        run("sfdisk", "--quiet", f"/dev/{name}", stdin=TABLE)
        assert name not in machine._disks() + machine._containers()


def test_preferences_and_packages_are_what_the_programs_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_BOOT", tmp_path / "boot")
    (tmp_path / "boot/grub").mkdir(parents=True)
    (tmp_path / "boot/vmlinuz-6.1").write_bytes(bytes(1000))
    os.symlink("vmlinuz-6.1", tmp_path / "boot/vmlinuz")
    found = {item.name: item for item in machine.collect(False, tmp_path)}
    lines = found["boot.txt"].contents.decode().splitlines()
    assert [line.split(None, 2)[1:] for line in lines] == [
        ["11", f"{tmp_path}/boot/vmlinuz -> vmlinuz-6.1"],
        ["1000", f"{tmp_path}/boot/vmlinuz-6.1"],
    ]
    monkeypatch.setattr(machine, "_BOOT", tmp_path / "nowhere")
    found = {item.name: item for item in machine.collect(False, tmp_path)}
    assert "is empty or cannot be read" in found["boot.txt"].error

# SPDX-License-Identifier: GPL-2.0-or-later
"""A drill: a restore rehearsed on real file systems, sound, damaged, too large and too slow."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm import stopping
from backup_vm.archive.notes import Check, Notes
from backup_vm.errors import SparsebakError
from backup_vm.files import checking
from backup_vm.files.answers import Part
from backup_vm.jobs.drilling import Scratch, turns
from tests.commands import Commands
from tests.files import trees
from tests.files.test_sandbox import ROOT
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from backup_vm.archive.image import Image

MIB = 1 << 20


def drill(commands: Commands, *words: str, code: int = 0) -> Any:
    scratch = commands.site.root / "scratch"
    scratch.mkdir(exist_ok=True)
    key = ("--passphrase-file", str(commands.passphrase), "--scratch", str(scratch))
    out, err = commands.run("drill", *words, *key, "--json", expect=code)
    assert not list(scratch.iterdir())
    return json.loads(out) | {"said": err}


@pytest.fixture(params=["ext4", "xfs", "btrfs-zstd"])
def sound(request: pytest.FixtureRequest, commands: Commands) -> Commands:
    """A session taken while the file system is mounted, with a file that is deleted and open."""
    image = commands.site.image()
    options = trees.made(image, request.param)
    with trees.mounted(image, *options) as folder:
        trees.fill(folder, 200)
        with open(folder / "deleted", "wb") as file:
            file.write(b"x" * 200_000)
            file.flush()
            (folder / "deleted").unlink()
            os.sync()
            commands.site.backup()
    return commands


def test_a_session_of_a_running_qube_is_drilled(sound: Commands) -> None:
    done = drill(sound)
    (check,) = done["file_systems"]
    if check["kind"] == "xfs":  # only a mount replays its journal: then it can be checked
        assert done["ok"] and check["by"] == "our readers" and "journal" in done["said"]
        with trees.mounted(sound.site.image()):
            pass
        sound.site.backup()
        done = drill(sound)
        (check,) = done["file_systems"]
    by = {"ext4": "e2fsck", "btrfs": "btrfs", "xfs": "xfs_repair"}[check["kind"]]
    if shutil.which(by, path="/usr/sbin:/usr/bin:/sbin:/bin"):
        assert check["by"] == by
    assert done["ok"] and check["sound"] and done["files"] > 200 and done["compared"] > 50
    status = sound.keyed("status")
    assert status["drilled"]["ok"] and status["drilled"]["name"] == "work/private"
    assert status["volumes"][0]["drilled"]["ok"]
    assert "Last drill: work/private, 2" in sound.run("status")[0]
    page, metrics = sound.site.root / "page.html", sound.site.root / "archive.prom"
    sound.run("report", "-o", str(page))
    assert "Drill: sound, today" in page.read_text()
    sound.run("status", "--metrics", str(metrics))
    assert 'sparsebak_volume_drill_sound{archive="' in metrics.read_text()


def test_a_file_system_that_is_damaged_fails_the_drill(commands: Commands) -> None:
    """In a way that our readers do not see: a block that a file has is free in the bitmap."""
    image = commands.site.image()
    trees.made(image, "ext4")
    with trees.mounted(image) as folder:
        (folder / "file").write_bytes(b"contents" * 100_000)
    blocks = debugfs(image, "blocks /file").split()
    subprocess.run(["debugfs", "-w", "-R", f"freeb {blocks[0]} 5", image], check=True)
    commands.site.backup()
    done = drill(commands, code=1)
    assert not done["ok"] and done["problem"] == "its ext4 is damaged, says e2fsck"
    assert not commands.keyed("status")["drilled"]["ok"]
    found = json.loads(commands.run("doctor", "--json", expect=None)[0])["findings"]
    assert any("drill" in one["what"] and one["state"] == "bad" for one in found)
    assert "which failed" in commands.run("status")[0]


def debugfs(image: Path, request: str) -> str:
    command = ["debugfs", "-R", request, image]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_damage_in_the_archive_fails_the_drill_with_its_code(commands: Commands) -> None:
    commands.site.image().write_bytes(os.urandom(3 * MIB))
    commands.site.backup()
    pack = next(commands.site.archive.rglob("*.pack"))
    raw = bytearray(pack.read_bytes())
    raw[len(raw) // 2] ^= 1
    pack.write_bytes(raw)
    assert not drill(commands, code=4)["ok"]


def test_a_volume_without_a_file_system_is_assembled_and_compared(commands: Commands) -> None:
    commands.site.image().write_bytes(os.urandom(3 * MIB + 5000))
    commands.site.backup()
    done = drill(commands)
    assert done["ok"] and not done["file_systems"] and "no file system" in done["said"]


def test_what_there_is_no_room_or_time_for_is_said(commands: Commands) -> None:
    commands.site.image().write_bytes(os.urandom(3 * MIB))
    commands.site.backup()
    key = ("--passphrase-file", str(commands.passphrase))
    error = commands.fails(1, "drill", *key, "--space", "1M")
    assert "3.0 MiB to be written, and 1.0 MiB are allowed" in error
    assert commands.keyed("status")["drilled"] is None
    done = drill(commands, "--time", "0h", code=1)
    assert "longer than it may" in done["problem"]
    assert not commands.keyed("status")["drilled"]["ok"]
    commands.fails(12, "drill")
    commands.fails(2, "drill", "--session", "latest", *key)


def test_a_checker_opens_the_image_whatever_the_umask(commands: Commands) -> None:
    trees.made(commands.site.image(), "ext4")
    commands.site.backup()
    mask = os.umask(0o777)
    try:
        (check,) = drill(commands)["file_systems"]
    finally:
        os.umask(mask)
    if shutil.which("e2fsck", path="/usr/sbin:/usr/bin:/sbin:/bin"):
        assert check["by"] == "e2fsck"


def test_a_folder_that_takes_no_file_so_large_is_named(tmp_path: Path) -> None:
    """As a FAT takes none of 4 GiB."""
    clear = SimpleNamespace(size=8192, chunk_size=4096)
    image = SimpleNamespace(session=SimpleNamespace(clear=clear), arrays=lambda: ())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Scratch(tmp_path) as scratch:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(SparsebakError, match=f"cannot write in {tmp_path}: File too large"):
                scratch.begin(cast("Image", image), None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_key_that_systemd_gives_is_used(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands.site.image().write_bytes(os.urandom(MIB))
    commands.site.backup()
    shutil.copy(commands.passphrase, tmp_path / "sparsebak.passphrase")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    commands.run("drill", "work/private")


def test_a_drill_that_is_killed_leaves_nothing(commands: Commands) -> None:
    commands.site.image().write_bytes(os.urandom(64 * MIB))
    commands.site.backup()
    scratch = commands.site.root / "scratch"
    scratch.mkdir()
    command = [Path(sys.executable).parent / "sparsebak", "--archive", commands.site.archive]
    words = ["drill", "--scratch", scratch, "--passphrase-file", commands.passphrase]
    with subprocess.Popen([*command, *words], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + PATIENCE
        while not any("(deleted)" in name for name in held(process.pid, scratch)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not list(scratch.iterdir())


def held(pid: int, folder: Path) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = os.readlink(path)
        except OSError:
            continue
        if name.startswith(str(folder)):
            found.append(name)
    return found


TRIES = """
import os, socket, subprocess, sys
tries = {
    "read": lambda: open("/root/secret" if os.path.exists("/root/secret") else sys.argv[2]),
    "write": lambda: open("/tmp/written", "wb"),
    "connect": lambda: socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1),
    "ptrace": lambda: os.readlink("/proc/%d/exe" % int(sys.argv[3])),
    "large": lambda: os.ftruncate(os.open(sys.argv[4], os.O_RDWR), 1 << 40),
}
failed = []
for name, attempt in tries.items():
    try:
        attempt()
    except (OSError, MemoryError):
        continue
    failed.append(name)
fd = os.open(sys.argv[4], os.O_RDWR)
os.pwrite(fd, b"written", 0)
print(failed, subprocess.run(["/bin/true"]).returncode)
"""


def test_a_checker_that_prints_no_more_and_stays_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image may have taken it over; nor does it keep the command from being interrupted."""
    script = "exec >&- 2>&-; exec sleep 20"
    stays = checking._Checker("sh", ((("-c", script), (0,)),), 1)
    monkeypatch.setitem(checking._CHECKERS, "ext4", stays)
    begun, part = time.monotonic(), Part(1, 0, 1, "ext4", True, "")
    with open(tmp_path / "image", "w+b") as image:
        verdict = checking.check(image.fileno(), part, True, 1)
        assert verdict == (None, "sh", "sh took too long")
        stopping.ask()
        try:
            with pytest.raises(KeyboardInterrupt):
                checking.check(image.fileno(), part, True, 600)
        finally:
            stopping.forget()
    assert time.monotonic() - begun < PATIENCE


def test_a_checker_reaches_nothing_but_the_image(tmp_path: Path) -> None:
    """A program in its place that tries; and what it needs, it has."""
    if os.geteuid() != 0:
        pytest.skip("needs root: to be another user")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    image = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.ftruncate(image, MIB)
    os.fchown(image, 65534, 65534)
    listening = socket.create_server(("127.0.0.1", 0))
    port = str(listening.getsockname()[1])
    program = str(ROOT / "backup_vm/files/checker.py")
    trying = ["/usr/bin/python3", "-I", "-c", TRIES]
    if not Path(trying[0]).exists():
        pytest.skip("there is no /usr/bin/python3")
    words = [port, str(secret), str(os.getppid()), f"/proc/self/fd/{image}"]
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            program,
            str(ROOT),
            str(image),
            "20",
            "writing",
            *trying,
            *words,
        ],
        pass_fds=[image],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.stdout == "[] 0\n", done
    assert os.pread(image, 7, 0) == b"written"
    os.close(image)


def session(number: int, when: int) -> Any:
    clear = SimpleNamespace(session=bytes([number]) * 16, time=when)
    return SimpleNamespace(clear=clear)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.data())
def test_all_volumes_and_all_sessions_have_their_turn(counts: list[int], data: Any) -> None:
    """Newest sessions every second time, and nobody waits longer than that."""
    volumes: list[Any] = []
    for at, count in enumerate(counts):
        sessions = tuple(session(at * 16 + i, 100 + i) for i in range(count))
        volumes.append(SimpleNamespace(id=f"{at:032x}", sessions=sessions))
    notes, now = Notes(), 1000
    rounds = 2 * max(counts)
    seen: list[tuple[str, bytes]] = []
    for _ in range(rounds * len(volumes)):
        now += data.draw(st.integers(1, 1000))
        volume, chosen = turns(volumes, notes, now)[0]
        seen.append((volume.id, chosen.clear.session))
        check = Check(now, data.draw(st.booleans()))
        notes.drilled[chosen.clear.session.hex()] = notes.drills[volume.id] = check
    for at in range(0, len(seen), len(volumes)):
        assert len({volume for volume, _ in seen[at : at + len(volumes)]}) == len(volumes)
    for volume in volumes:
        mine = [one for name, one in seen if name == volume.id]
        assert set(mine) == {one.clear.session for one in volume.sessions}
        assert all(one == volume.sessions[-1].clear.session for one in mine[::2])

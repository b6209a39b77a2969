# SPDX-License-Identifier: GPL-2.0-or-later
"""dom0's configuration as a tar: whatever one file is or does, all the others are in it, and what
is not is listed.
"""

import errno
import io
import os
import socket
import subprocess
import tarfile
import threading
from functools import partial
from pathlib import Path

import pytest

from dom0_agent.admin.cli import settings
from dom0_agent.admin.settings import collecting, config_tar, restored_config
from dom0_agent.admin.settings.collecting import _take_config, _taken
from tests.conftest import cannot
from tests.faultfs import Fault, FaultFS
from wire.status import Code, Refused

TORN = "it changed while it was read: what is here may be of two moments"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "a.conf").write_text("a\n")
    (folder / "z.conf").write_text("z\n")
    return folder


def taken(tmp_path: Path, *folders: Path) -> tuple[dict[str, bytes], list[str]]:
    path = tmp_path / "config.tar"
    with open(path, "w+b") as out:
        left_out = config_tar.write(tuple(str(folder) for folder in folders), out)
    assert restored_config.left_out(path) == left_out
    found = {Path(name).name: contents for name, _, contents in restored_config.files(path)}
    return found, left_out


def test_things_that_are_no_files(home: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(home / "S.gpg-agent"))
    os.mkfifo(home / "fifo")
    if os.getuid() == 0:
        os.mknod(home / "null", 0o20666, os.makedev(1, 3))
    os.symlink("/nowhere", home / "link")
    found, left_out = taken(tmp_path, home)
    assert found == {"a.conf": b"a\n", "z.conf": b"z\n"}
    expected = [f"{home}/S.gpg-agent: it is a socket", f"{home}/fifo: it is a FIFO"]
    assert left_out == expected + [f"{home}/null: it is a device"] * (os.getuid() == 0)


def test_folders_by_their_meaning_and_large_files(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_tar, "_LARGEST", 1000)
    for folder in ("Cache", "Trash", ".cache", ".local/share/Trash"):
        (home / folder).mkdir(parents=True)
        (home / folder / folder.replace("/", "-")).write_text("x")
    (home / "large").write_bytes(bytes(1001))
    (home / "just").write_bytes(bytes(1000))
    found, left_out = taken(tmp_path, home)
    assert set(found) == {"a.conf", "z.conf", "Cache", "Trash", "just"}
    assert [line.split(":")[0].removeprefix(f"{home}/") for line in left_out] == [
        ".cache", ".local/share/Trash", "large",
    ]  # fmt: skip


def test_hard_links_odd_names_and_order(home: Path, tmp_path: Path) -> None:
    os.link(home / "a.conf", home / "also")
    (home / os.fsdecode(b"caf\xe9")).write_text("latin")
    (home / ("long" * 50)).mkdir()
    (home / ("long" * 50) / ("name" * 50)).write_text("deep")
    deep = home
    for _ in range(300):
        deep = deep / "d"
    os.makedirs(deep)
    os.link(home / "a.conf", tmp_path / "elsewhere")
    found, left_out = taken(tmp_path, home, home, home / "a.conf")
    assert found["also"] == found["a.conf"] == b"a\n" and left_out == []
    assert found[os.fsdecode(b"caf\xe9")] == b"latin" and found["name" * 50] == b"deep"
    first = (tmp_path / "config.tar").read_bytes()
    taken(tmp_path, home, home, home / "a.conf")
    assert (tmp_path / "config.tar").read_bytes() == first
    with tarfile.open(tmp_path / "config.tar") as tar:
        names = tar.getnames()
    assert len(names) == len(set(names))
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "config.tar", "-C", out], check=True)
    back = out / str(home).lstrip("/")
    assert os.path.samefile(back / "a.conf", back / "also"), "one file of two names, as it was"


def test_files_that_change_while_they_are_read(home: Path, tmp_path: Path) -> None:
    for number in range(30):
        (home / f"n{number:03}").write_text("n")
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            (home / "m.log").write_bytes(os.urandom(3_000_000))
            (home / "gone").write_text("x")
            (home / "gone").unlink()

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        for _ in range(10):
            found, left_out = taken(tmp_path, home)
            assert len(set(found) - {"m.log", "gone"}) == 32
            # what is of two moments is said
            assert left_out in ([], [f"{home}/m.log: {TORN}"], [f"{home}/gone: {TORN}"])
    finally:
        stop.set()
        thread.join()


def test_one_that_shrinks_and_one_that_cannot_be_read(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "m.log").write_bytes(b"x" * 3000)
    (home / "bad").write_bytes(b"y" * 3000)
    real = config_tar._block

    def failing(file: io.FileIO) -> bytes:
        with config_tar._reading():
            if os.readlink(f"/proc/self/fd/{file.fileno()}").endswith("bad"):
                raise OSError(5, "Input/output error")
        if os.readlink(f"/proc/self/fd/{file.fileno()}").endswith("m.log"):
            os.truncate(home / "m.log", 10)
            os.utime(home / "m.log")
        return real(file)

    monkeypatch.setattr(config_tar, "_block", failing)
    found, left_out = taken(tmp_path, home)
    assert found["m.log"] == b"x" * 10 and found["z.conf"] == b"z\n" and "bad" not in found
    assert left_out == [f"{home}/bad: Input/output error", f"{home}/m.log: {TORN}"]


def test_what_cannot_be_written_is_refused(home: Path, tmp_path: Path) -> None:
    """A full disk for dom0's state: a small real one."""
    kept = tmp_path / "state/dom0.config"
    kept.parent.mkdir()
    take = partial(_take_config, (str(home),))
    assert _taken("dom0/config", kept, take).changed and not _taken("", kept, take).changed
    before_it = kept.read_bytes()
    (home / "big").write_bytes(bytes(100_000))
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        error = _taken("dom0/config", kept, take).error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert "File too large" in error
    assert kept.read_bytes() == before_it and list(kept.parent.iterdir()) == [kept]


def test_one_that_is_not_whole_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_tar, "_header", lambda info: bytes(512))
    with pytest.raises((Refused, tarfile.ReadError)):
        taken(tmp_path, home)


def test_what_cannot_even_be_looked_at_is_listed(
    home: Path, tmp_path: Path, faultfs: FaultFS
) -> None:
    """Where a file system of another user is mounted, or one whose process has died."""
    (faultfs.real / "there.conf").write_text("there\n")
    (faultfs.real / "mnt").mkdir()
    faultfs.fail(Fault("getattr", "ENOTCONN", path="mnt*"))
    found, left_out = taken(tmp_path, home, faultfs.path)
    assert set(found) == {"a.conf", "z.conf", "there.conf"}
    assert left_out == [f"{faultfs.path}/mnt: Transport endpoint is not connected"]


def test_it_does_not_fill_the_disk_of_dom0(
    home: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(48):
        (home / f"{number}").write_bytes(bytes(1 << 20))
    monkeypatch.setattr(config_tar, "_CHECK_ROOM", 1 << 20)
    with pytest.raises(Refused) as caught:
        _take_config((str(home),), small_disk / "dom0.config")
    assert caught.value.code == Code.NO_SPACE
    used = os.statvfs(small_disk)
    assert used.f_bfree > used.f_blocks // 2 and not list(small_disk.glob("dom0*"))


def test_one_that_changed_is_read_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it, then a change, then the rest: what is kept is of one moment."""
    (home / "m.log").write_bytes(b"1" * 3_000_000)
    real, once = config_tar._block, []

    def changing(file: io.FileIO) -> bytes:
        if file.tell() and not once and os.fstat(file.fileno()).st_size > 1000:
            once.append(1)
            (home / "m.log").write_bytes(b"2" * 2_000_000)
        return real(file)

    monkeypatch.setattr(config_tar, "_block", changing)
    found, left_out = taken(tmp_path, home)
    assert once and found["m.log"] == b"2" * 2_000_000 and left_out == []


def test_more_than_could_be_restored_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "CONFIG_LIMIT", collecting._END + 10_000)
    with pytest.raises(Refused, match="could not be restored"):
        _take_config((str(home), "/usr/bin/env"), tmp_path / "dom0.config")
    assert not (tmp_path / "dom0.config").exists()


ACL = bytes.fromhex(
    "02000000"  # version 2; then tag, permissions and whose of each entry (linux/posix_acl_xattr.h)
    "01000600ffffffff" "02000400e8030000" "04000400ffffffff" "10000400ffffffff" "20000000ffffffff"
)  # fmt: skip
ATTRIBUTES = {"user.odd=name%": b"\xff\0\n=1 x", "user.plain": b"text", "user.empty": b""}


def _extended(path: Path) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


@pytest.fixture
def attributed(home: Path) -> Path:
    """A file and a folder with attributes, an ACL and, for root, a capability."""
    (home / "folder").mkdir()
    try:
        for path in (home / "a.conf", home / "folder"):
            for name, value in (ATTRIBUTES | {"system.posix_acl_access": ACL}).items():
                os.setxattr(path, name, value)
        if os.geteuid() == 0:
            capability = bytes.fromhex("0100000200040000000000000000000000000000")
            os.setxattr(home / "z.conf", "security.capability", capability)
            os.symlink("/nowhere", home / "link")
            os.setxattr(home / "link", "trusted.note", b"of a link", follow_symlinks=False)
    except OSError as error:
        cannot(f"attributes on the temporary folder: {error.strerror}")
    return home


def test_tar_brings_extended_attributes_back(attributed: Path, tmp_path: Path) -> None:
    taken(tmp_path, attributed)
    written = Path(__file__).parents[4] / "docs" / "recovery.md"
    line = next(line for line in written.read_text().splitlines() if "-xpf config.tar" in line)
    (tmp_path / "empty").mkdir()
    os.rename(tmp_path / "config.tar", tmp_path / "empty" / "config.tar")
    done = subprocess.run(line, shell=True, cwd=tmp_path / "empty", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    back = tmp_path / "empty" / str(attributed).lstrip("/")
    for name in ("a.conf", "z.conf", "folder", *(["link"] if os.geteuid() == 0 else [])):
        assert _extended(back / name) == _extended(attributed / name)
    assert ATTRIBUTES.items() <= _extended(back / "a.conf").items()
    assert (back / "a.conf").stat().st_mode == (attributed / "a.conf").stat().st_mode


def test_a_file_put_back_has_its_extended_attributes(attributed: Path, tmp_path: Path) -> None:
    os.link(attributed / "a.conf", attributed / "b.conf")
    taken(tmp_path, attributed)
    expected = {name: _extended(attributed / name) for name in ("a.conf", "b.conf", "z.conf")}
    found = restored_config.files(tmp_path / "config.tar")
    members = {Path(name).name: member for name, member, _ in found}
    for name, attributes in expected.items():
        (attributed / name).unlink()
        settings._put_back(attributed / name, members[name], b"again\n")
        assert _extended(attributed / name) == attributes


def test_attributes_that_cannot_be_read_concern_that_file_alone(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(where: int | Path, **_: object) -> list[str]:
        if os.path.samestat(os.stat(where), os.stat(home / "a.conf")):
            raise OSError(errno.EIO, "Input/output error")
        return []

    monkeypatch.setattr(os, "listxattr", fails)
    found, left_out = taken(tmp_path, home)
    assert found == {"z.conf": b"z\n"}
    assert left_out == [f"{home}/a.conf: Input/output error"]

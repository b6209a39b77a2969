# SPDX-License-Identifier: GPL-2.0-or-later
"""A restored image: what it keeps of the one before, when it is refused, and that it leaves nothing
behind.
"""

import errno
import mmap
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.durable import closing_fd
from dom0_agent.config import Pool, Volume
from dom0_agent.sources import file
from dom0_agent.sources.directory import DirectorySource
from dom0_agent.sources.file import FileSource
from dom0_agent.targets import attributes
from dom0_agent.targets import file as target_file
from dom0_agent.targets.file import FileReplacement
from tests.conftest import mounted
from wire.status import Code, Refused

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def made(folder: Path) -> FileSource:
    (folder / "work.img").write_bytes(b"before" * 1000)
    return FileSource(Volume("work", "private", Pool("p", "file", folder), "work.img"))


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    return made(tmp_path)


@pytest.fixture(params=["btrfs", "xfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on each kind of file system."""
    make = [f"mkfs.{request.param}", "-q"]
    yield from mounted(tmp_path / "disk.img", tmp_path / "disk", 400 << 20, make)


def restore(source: DirectorySource) -> None:
    target = FileReplacement(source, 9000)
    try:
        target.write(0, [b"after"])
    except BaseException:
        target.discard()
        raise
    target.commit()
    assert source.image.read_bytes() == b"after".ljust(9000, b"\0")


def refused(action: Callable[[], object], code: Code = Code.SOURCE_FAILED) -> str:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.code == code
    return str(caught.value)


def run(*words: object) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=True)
    return done.stdout


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access control list as the kernel takes it: tag, permissions, id (Linux,
    posix_acl_xattr.h).
    """
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
FOR_DAEMON = acl((1, 6, NOBODY), (2, 6, 1), (4, 4, NOBODY), (0x10, 6, NOBODY), (0x20, 0, NOBODY))


@as_root
def test_a_restored_image_keeps_what_the_old_one_had(disk: Path) -> None:
    source = made(disk)
    image = source.image
    xfs = run("stat", "-f", "-c", "%T", disk).strip() == "xfs"
    os.chown(image, 1234, 4321)
    image.chmod(0o640)
    for name, value in (
        ("system.posix_acl_access", FOR_DAEMON),
        ("user.note", b"hello"),
        ("trusted.note", b"for root"),
        ("security.selinux", b"system_u:object_r:svirt_image_t:s0\0"),
    ):
        os.setxattr(image, name, value)
    run("chattr", "+d", *(["-p", "77"] if xfs else []), image)

    def everything() -> dict[str, object]:
        status = image.stat()
        return {
            "mode, owner": (status.st_mode, status.st_uid, status.st_gid),
            "flags": run("lsattr", *(["-p"] if xfs else []), image),
            **{name: os.getxattr(image, name) for name in os.listxattr(image)},
        }

    before = everything()
    assert before["system.posix_acl_access"] == FOR_DAEMON and "d" in str(before["flags"])
    for _ in range(2):
        restore(source)
        assert everything() == before
    os.removexattr(image, "system.posix_acl_access")
    os.setxattr(disk, "system.posix_acl_default", FOR_DAEMON)
    before = everything()
    restore(source)
    assert everything() == before, "what a folder gives to new files is not the image's"


@as_root
@pytest.mark.parametrize("folder", ["", "+c", "+C"])
@pytest.mark.parametrize("image", ["", "+c", "+C"])
def test_copy_on_write_and_compression_are_as_they_were(
    btrfs_folder: Path, folder: str, image: str
) -> None:
    """On Btrfs a new file takes them from its folder, and only an empty one can be changed."""
    file = btrfs_folder / "work.img"
    file.touch()
    if image:
        run("chattr", image, file)
    source = made(btrfs_folder)
    before = run("lsattr", file)
    assert (image[1:] in before.split()[0]) if image else True
    if folder:
        run("chattr", folder, btrfs_folder)
    for _ in range(2):
        restore(source)
        assert run("lsattr", file) == before


@as_root
def test_what_cannot_be_kept_is_refused(disk: Path) -> None:
    source = made(disk)
    for flag in "ia":
        run("chattr", "+" + flag, source.image)
        try:
            assert "may not be changed" in refused(lambda: FileReplacement(source, 1))
        finally:
            run("chattr", "-" + flag, source.image)
    os.link(source.image, source.image.with_name("other.img"))
    assert "2 names" in refused(lambda: FileReplacement(source, 1))
    source.image.with_name("other.img").unlink()
    restore(source)
    assert [path.name for path in disk.iterdir() if path.name != "lost+found"] == ["work.img"]


@as_root
def test_an_image_in_use_is_refused(disk: Path) -> None:
    source = made(disk)
    before, image = source.image.read_bytes(), source.image

    def in_use() -> None:
        assert "in use" in refused(lambda: FileReplacement(source, 9000), Code.BUSY)
        assert image.read_bytes() == before

    for flags in (os.O_RDWR, os.O_RDONLY):
        with closing_fd(os.open(image, flags)):
            in_use()
    fd = os.open(image, os.O_RDWR)
    mapped = mmap.mmap(fd, 4096)  # keeps a descriptor of its own
    os.close(fd)
    in_use()
    mapped.close()
    loop = run("losetup", "--find", "--show", image).strip()
    try:
        in_use()
    finally:
        run("losetup", "--detach", loop)
    target = FileReplacement(source, 9000)
    target.write(0, [b"after"])
    with closing_fd(os.open(image, os.O_RDWR)):
        assert "in use" in refused(target.commit, Code.BUSY)
    assert image.read_bytes() == before
    restore(source)


def test_another_image_in_its_place_is_not_replaced(source: FileSource) -> None:
    target = FileReplacement(source, 10)
    os.replace(source.image, source.image.with_name("kept"))
    source.image.write_bytes(b"another")
    assert "took the place" in refused(target.commit, Code.BUSY)
    assert source.image.read_bytes() == b"another"
    source.image.unlink()
    target = FileReplacement(source, 10)
    source.image.write_bytes(b"another")
    assert "made meanwhile" in refused(target.commit, Code.BUSY)
    assert source.image.read_bytes() == b"another"


@pytest.mark.parametrize("nameless", [True, False])
def test_nothing_is_left_behind(
    source: FileSource, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    folder = source.image.parent
    if not nameless:  # as on a file system that has no files without a name
        original = os.open

        def named(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return original(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", named)
    target = FileReplacement(source, 5000)
    target.write(0, [b"x" * 5000])
    target.discard()
    assert os.listdir(folder) == ["work.img"]
    pid = os.fork()
    if pid == 0:
        FileReplacement(source, 5000).write(0, [b"x" * 5000])
        os._exit(0)
    os.waitpid(pid, 0)
    assert (os.listdir(folder) == ["work.img"]) == nameless
    restore(source)
    assert os.listdir(folder) == ["work.img"]
    monkeypatch.setattr(attributes, "keep", lambda *_: os.stat("/nonexistent"))
    assert "cannot write beside" in refused(lambda: FileReplacement(source, 1))
    assert os.listdir(folder) == ["work.img"]


def no_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has none."""
    original = attributes.fcntl.fcntl

    def no_lease(fd: int, what: int, *rest: Any) -> Any:
        if what == attributes.fcntl.F_SETLEASE:
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(fd, what, *rest)

    monkeypatch.setattr(attributes.fcntl, "fcntl", no_lease)


@as_root
def test_a_loop_device_is_seen_where_there_are_no_leases(
    source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_leases(monkeypatch)
    loop = run("losetup", "--find", "--show", source.image).strip()
    try:
        assert loop in refused(lambda: FileReplacement(source, 9000), Code.BUSY)
    finally:
        run("losetup", "--detach", loop)
    restore(source)


def test_where_nobody_can_say_who_has_it_open(
    source: FileSource, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    no_leases(monkeypatch)
    restore(source)
    assert "cannot tell" in capfd.readouterr().err


def test_only_regular_files_are_opened(source: FileSource) -> None:
    image = source.image
    for make in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/hostname")):
        if image.is_dir():
            image.rmdir()
        else:
            image.unlink()
        make(image)
        for action in (
            source.live_size,
            lambda: source.snapshot(1),
            lambda: FileReplacement(source, 1),
        ):
            assert "not a regular file" in refused(action)
    image.unlink()
    if os.geteuid() == 0:
        os.mknod(image, 0o600 | 0o060000, os.makedev(7, 0))
        assert "not a regular file" in refused(source.live_size)


def test_a_pool_is_not_filled_up(source: FileSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a copy or a restore, whatever room there was at its begin; and what is not known is not
    held against a pool.
    """
    for module in (file, target_file):
        monkeypatch.setattr(module, "CHECK_ROOM", 4096)
    source.snapshot(1)
    blocks = 1000

    def room(free: int) -> None:
        found = os.statvfs_result((4096, 4096, blocks, free, free, 1, 1, 1, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _: found)

    room(51)
    source.require_room()
    target = FileReplacement(source, 10_000)
    room(50)
    assert "95 % full" in refused(source.require_room, Code.NO_SPACE)
    refused(lambda: source.snapshot(2), Code.NO_SPACE)
    refused(lambda: target.write(0, [bytes(8192)]), Code.NO_SPACE)
    target.discard()
    refused(lambda: FileReplacement(source, 10), Code.NO_SPACE)
    assert source.snapshots() == {1} and len(os.listdir(source.image.parent)) == 2
    blocks = 0
    room(0)
    source.require_room()
    blocks = -(1 << 63)  # made up
    room(-(1 << 63))
    source.require_room()
    source.snapshot(2)
    monkeypatch.setattr(os, "statvfs", lambda _: os.stat("/nonexistent"))
    assert "cannot ask" in refused(source.require_room)

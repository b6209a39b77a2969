# SPDX-License-Identifier: GPL-2.0-or-later
"""Images by real mkfs, filled by the kernel with odd files; and what the kernel says is in them."""

import os
import random
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import cannot, elsewhere

MIB = 1 << 20
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *row)
    for row in (
        (1, 6, 0xFFFFFFFF),
        (2, 7, 1234),
        (4, 4, 0xFFFFFFFF),
        (16, 7, 0xFFFFFFFF),
        (32, 4, 0xFFFFFFFF),
    )
)
FORMS = {
    "ext4": (["mkfs.ext4", "-q", "-F"], [], 64),
    "ext4-inline": (["mkfs.ext4", "-q", "-F", "-I", "512", "-O", "inline_data,ea_inode"], [], 64),
    "ext4-meta_bg": (
        ["mkfs.ext4", "-q", "-F", "-b", "1024", "-O", "meta_bg,^resize_inode"],
        [],
        64,
    ),
    "ext3": (["mkfs.ext3", "-q", "-F", "-b", "1024"], [], 64),
    "ext2": (["mkfs.ext2", "-q", "-F", "-I", "128"], [], 64),
    "xfs": (["mkfs.xfs", "-q", "-f"], [], 320),
    "xfs-large-folders": (["mkfs.xfs", "-q", "-f", "-n", "size=16384", "-b", "size=1024"], [], 320),
    "btrfs": (["mkfs.btrfs", "-q", "-f"], [], 160),
    "btrfs-zstd": (["mkfs.btrfs", "-q", "-f"], ["compress-force=zstd"], 160),
    "btrfs-lzo": (["mkfs.btrfs", "-q", "-f"], ["compress-force=lzo"], 160),
    "btrfs-zlib": (["mkfs.btrfs", "-q", "-f", "--mixed"], ["compress-force=zlib"], 160),
}


def made(image: Path, form: str) -> list[str]:
    """Make the file system; returns the options to mount it with."""
    command, options, size = FORMS[form]
    with open(image, "wb") as file:
        file.truncate(size * MIB)
    subprocess.run([*command, image], check=True, capture_output=True)
    return options


@contextmanager
def mounted(image: Path, *options: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        cannot("mounting an image needs root")
    folder = image.parent / f"{image.name}.mounted"
    folder.mkdir(exist_ok=True)
    command = ["mount", "-o", ",".join(("loop", *options)), image, folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        elsewhere(f"this kernel does not mount it: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def fill(root: Path, many: int = 1500, seed: int = 1) -> None:
    """Thousands of odd files: names, links, sizes, holes, attributes, times, devices."""
    chance = random.Random(seed)
    names(root / "names")
    contents(root / "contents", chance)
    links(root / "links")
    attributes(root / "attributes", chance)
    large = root / "large"
    large.mkdir()
    for number in range(many):
        (large / f"{number:05}-{'x' * (number % 60)}").touch()
    for number in range(0, many, 7):
        (large / f"{number:05}-{'x' * (number % 60)}").unlink()
    deep = root / "deep"
    for number in range(40):
        deep = deep / f"level {number}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"found")
    times(root / "times")
    devices(root / "devices")


def names(folder: Path) -> None:
    folder.mkdir()
    raw = os.fsencode(folder)
    for name in (
        b" ",
        b"-rf",
        b"new\nline",
        b"\x1b[2J",
        b"\xff\xfe",
        "ä€𝄞".encode(),
        b"x" * 255,
        b"...",
        b"a\\b",
        "\u202egpj".encode(),
        b"tab\there",
        bytes(range(1, 47)),
        bytes(range(48, 256)),
    ):
        Path(os.fsdecode(raw + b"/" + name)).write_bytes(name)


def contents(folder: Path, chance: random.Random) -> None:
    folder.mkdir()
    for size in (0, 1, 40, 59, 60, 61, 100, 155, 200, 511, 1023, 2048, 4095, 4096, 4097, 70_000):
        (folder / f"size-{size}").write_bytes(chance.randbytes(size))
    (folder / "repeated").write_bytes(b"the same again and again. " * 40_000)
    (folder / "mixed").write_bytes(chance.randbytes(300_000) + bytes(500_000) + b"z" * 300_000)
    with open(folder / "sparse", "wb") as file:
        for at in (0, 5 * MIB, 5 * MIB + 8192, 30 * MIB, 70 * MIB):
            file.seek(at)
            file.write(chance.randbytes(5000))
        file.truncate(90 * MIB)
    with open(folder / "hole", "wb") as file:
        file.truncate(3 * MIB + 17)
    with open(folder / "pieces", "wb") as file:
        for number in range(200):
            file.seek(number * 20_000)
            file.write(chance.randbytes(900))
            if number % 8 == 0:
                file.flush()
                os.fsync(file.fileno())
    # First what will be old bytes, then room that is given to a file without writing it.
    rest = folder / "rest"
    rest.write_bytes(b"old secret " * 100_000)
    os.sync()
    rest.unlink()
    os.sync()
    with open(folder / "preallocated", "wb") as file, suppress(OSError):  # ext2 cannot
        os.posix_fallocate(file.fileno(), 0, MIB)
        file.seek(300_000)
        file.write(b"in the middle")
    with open(folder / "rewritten", "wb") as file:
        file.write(chance.randbytes(200_000))
        file.flush()
        os.fsync(file.fileno())
        for at in (0, 50_000, 100_001):
            file.seek(at)
            file.write(b"again" * 3)
            file.flush()
            os.fsync(file.fileno())


def links(folder: Path) -> None:
    folder.mkdir()
    (folder / "first").write_bytes(b"one file, several names")
    for number in range(20):
        os.link(folder / "first", folder / f"hard-{number}")
    for length in (1, 58, 59, 60, 61, 250, 1000):
        os.symlink("t" * length, folder / f"to-{length}")
    os.symlink("/etc/passwd", folder / "absolute")
    os.symlink("../names", folder / "folder")
    os.symlink("loop", folder / "loop")


def attributes(folder: Path, chance: random.Random) -> None:
    folder.mkdir()
    for number, size in enumerate((0, 1, 30, 100, 500, 1500, 3000)):
        file = folder / f"value-{size}"
        file.write_bytes(b"has attributes")
        with suppress(OSError):  # ext2 has no room for large ones
            os.setxattr(file, f"user.n{number}", chance.randbytes(size))
            os.setxattr(file, f"trusted.n{number}", b"root's")
    many = folder / "many"
    many.touch()
    for number in range(200):
        with suppress(OSError):
            os.setxattr(many, f"user.{number:03}-{'y' * (number % 40)}", bytes([number]) * number)
    large = folder / "largest"
    large.touch()
    with suppress(OSError):
        os.setxattr(large, "user.large", chance.randbytes(15_000))
    acl = folder / "acl"
    acl.touch()
    os.setxattr(acl, "system.posix_acl_access", ACL)
    inside = folder / "inherited"
    inside.mkdir()
    os.setxattr(inside, "system.posix_acl_default", ACL)
    capable = folder / "capable"
    capable.touch()
    os.setxattr(capable, "security.capability", bytes.fromhex("0100000200040000" + "00" * 12))


def times(folder: Path) -> None:
    folder.mkdir()
    for seconds in (-(10**9), -1, 0, 1, 10**9, 2**31 - 1, 2**31 + 5, 2**32 + 5, 2**33 + 7):
        file = folder / f"at{seconds}"
        file.touch()
        os.utime(file, ns=(seconds * 10**9 + 5, seconds * 10**9 + 999_999_999))
    os.chown(folder / "at0", 70_000, 80_000)
    (folder / "at1").chmod(0o6755)


def devices(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(folder / "far", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of file systems that this kernel may not have, filled by other programs than ours: FAT by
mtools, exFAT and NTFS by FUSE.
"""

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from tests.conftest import cannot

MIB = 1 << 20
FORMS = {
    "fat12": (["mkfs.fat", "-F", "12"], 4),
    "fat12-many-sectors": (["mkfs.fat", "-F", "12", "-S", "1024", "-s", "8"], 16),
    "fat16": (["mkfs.fat", "-F", "16", "-s", "1"], 20),
    "fat32": (["mkfs.fat", "-F", "32", "-s", "1"], 48),
    "fat32-large": (["mkfs.fat", "-F", "32", "-S", "4096", "-s", "1"], 300),
    "exfat": (["mkfs.exfat"], 64),
    "exfat-large": (["mkfs.exfat", "-c", "32K"], 64),
    "ntfs": (["mkntfs", "-q", "-F", "-f"], 48),
    "ntfs-small": (["mkntfs", "-q", "-F", "-f", "-c", "512"], 48),
    "ntfs-large": (["mkntfs", "-q", "-F", "-f", "-c", "65536"], 96),
    "ntfs-sectors": (["mkntfs", "-q", "-F", "-f", "-s", "4096"], 64),
    "ntfs-full": (["mkntfs", "-q", "-F", "-f", "-c", "512"], 8),
}


def run(*words: str | Path, **more: str) -> None:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    environment = {"PATH": path, "LC_ALL": "C.UTF-8", "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"} | more
    if shutil.which(words[0], path=path) is None:
        cannot(f"{words[0]} is not installed: make packages")
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (words, done.stdout, done.stderr)


def made(image: Path, form: str) -> None:
    """An empty file system."""
    command, size = FORMS[form]
    with open(image, "wb") as file:
        file.truncate(size * MIB)
    run(*command, image)


@contextmanager
def mounted(image: Path, form: str, *options: str) -> Iterator[Path]:
    """The same by FUSE, as only root may; all is written when this ends."""
    if os.geteuid() != 0:
        cannot("mounting an image needs root")
    folder = image.parent / f"{image.name}.mounted"
    folder.mkdir(exist_ok=True)
    device = ""
    if form.startswith("exfat"):
        done = subprocess.run(
            ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True
        )
        device = done.stdout.strip()
        run("mount.exfat-fuse", device, folder)
    else:
        run("ntfs-3g", *(("-o", ",".join(options)) if options else ()), image, folder)
    try:
        yield folder
    finally:
        run("umount", folder)
        if device:
            run("losetup", "--detach", device)
        folder.rmdir()


def tree(root: Path, many: int = 300, seed: int = 1) -> None:
    """Files and folders that all of these can have; times are whole pairs of seconds."""
    chance = random.Random(seed)
    (root / "names").mkdir(parents=True)
    for name in (
        "lower.txt", "UPPER.TXT", "MiXed.Txt", "lower.BIN", "UPPER.bin", "a", "B", "no extension",
        "x" * 251 + ".txt", "thirteen char", "twenty-six characters here", "äöü, and the €.text",
        "漢字" * 30, "𝄞 clef", ".hidden", "two.dots.here", "a+b,c;d=e[f]", "~tilde", "Résumé.docx",
    ):  # fmt: skip
        (root / "names" / name).write_text(name)
    (root / "contents").mkdir()
    for size in (0, 1, 511, 512, 513, 2048, 4095, 4096, 4097, 70_000, 300_000):
        (root / "contents" / f"size-{size}").write_bytes(chance.randbytes(size))
    large = root / "large"
    large.mkdir()
    for number in range(many):
        (large / f"{number:05}-{'x' * (number % 60)}").write_bytes(b"%d" % number)
    deep = root / "deep"
    for number in range(12):
        deep = deep / f"level {number}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"found")
    (root / "empty").mkdir()
    (root / "times").mkdir()
    for seconds in (315532800 + 86400 * 59, 951782400, 951868800, 10**9, 1709164800, 4107542400):
        path = root / "times" / f"at{seconds}"
        path.touch()
        os.utime(path, (seconds, seconds))


def fill_by_mtools(image: Path, root: Path) -> None:
    """Copy a tree into FAT, with pieces of files between those of others; what is deleted there is
    not in the tree any more.
    """

    def names(folder: Path) -> list[Path]:
        return sorted(folder.iterdir())

    (root / "names" / "𝄞 clef").unlink()  # mtools writes another letter
    run("mcopy", "-i", image, "-s", "-m", "-Q", *names(root), "::")
    gone = names(root / "large")[::7] + [root / "contents" / "size-4096"]
    run("mdel", "-i", image, *(f"::{path.relative_to(root)}" for path in gone))
    for path in gone:
        path.unlink()
    more = root / "contents" / "in pieces"
    more.write_bytes(random.Random(5).randbytes(400_000))
    run("mcopy", "-i", image, "-m", "-Q", more, "::contents/")


def in_pieces(folder: Path) -> None:
    """Files that grow by turns, and some that go."""
    chance = random.Random(9)
    for turn in range(12):
        for number in range(20):
            with open(folder / f"piece-{number}", "ab") as file:
                file.write(chance.randbytes(3000 + 7 * turn))
    for number in range(0, 20, 3):
        (folder / f"piece-{number}").unlink()
    (folder / "after").write_bytes(chance.randbytes(500_000))


def odd(folder: Path) -> None:
    """What NTFS has besides: links, holes, compressed files and streams, by ntfs-3g."""
    chance = random.Random(11)
    (folder / "first").write_bytes(b"one file, several names")
    for number in range(5):
        os.link(folder / "first", folder / "names" / f"hard-{number}")
    for length in (1, 60, 300):
        os.symlink("t" * length, folder / f"to-{length}")
    with open(folder / "sparse", "wb") as file:
        for at in (0, 5 * MIB, 5 * MIB + 8192, 30 * MIB):
            file.seek(at)
            file.write(chance.randbytes(5000))
        file.truncate(40 * MIB)
    packed = folder / "packed"
    packed.mkdir()
    os.setxattr(packed, "system.ntfs_attrib_be", (0x810).to_bytes(4))
    words = [b"%d words " % number for number in range(400)]
    text = b"".join(chance.choices(words, k=40_000))
    for name, data in (
        ("text", text), ("zeros", bytes(200_000)), ("chance", chance.randbytes(300_000)),
        ("mixed", text[:70_000] + chance.randbytes(140_000) + bytes(140_000) + text[:30_000]),
        ("small", b"small " * 200), ("end", text[: 65536 * 2]), ("one", b"\1" + text[:4095]),
    ):  # fmt: skip
        (packed / name).write_bytes(data)
    os.setxattr(folder / "first", "user.stream", b"in another stream")
    many = folder / "many pieces"
    with open(many, "wb") as file, open(folder / "between", "wb") as other:
        for _ in range(400):
            for one in (file, other):
                one.write(chance.randbytes(4096))
                one.flush()


def reparse(path: Path, tag: int, body: bytes) -> None:
    """Make a reparse point of a file of NTFS."""
    raw = struct.pack("<IHH", tag, len(body), 0) + body
    os.setxattr(path, "system.ntfs_reparse_data", raw)


def crowd(folder: Path) -> None:
    """Fill it up with small files by turns with the pieces of NTFS' own table, so that this has as
    many pieces as can be.
    """
    for turn in range(2):
        with suppress(OSError):
            for number in count():
                path = folder / f"{turn}-{number}"
                path.write_bytes(b"%d " % number * (1 if turn else 300))
        for path in sorted(folder.iterdir())[:: 2 + turn]:
            path.unlink()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Images with logical volumes, by LVM's own programs."""

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import cannot
from tests.files import foreign

MIB = 1 << 20
PARTS = ((1, 40), (41, 50))
"""Where both partitions are that have physical volumes, and their sizes, in MiB."""
CONFIG = """
devices {{ use_devicesfile = 0 scan = [ "/dev" ] scan_lvs = 0 }}
devices {{ filter = [ "a|^{0}$|", "a|^{1}$|", "r|.*|" ] }}
global {{ locking_dir = "{folder}/lock" use_lvmpolld = 0 {more} }}
activation {{ udev_sync = 0 udev_rules = 0 verify_udev_operations = 0 monitoring = 0 }}
backup {{ backup = 0 archive = 0 }}
"""


def partitioned(image: Path) -> None:
    """As an MBR has it."""
    rows = b"".join(
        struct.pack("<4xB3xII", 0x8E, start * 2048, size * 2048) for start, size in PARTS
    )
    image.write_bytes(bytes(446) + rows.ljust(64, b"\0") + b"\x55\xaa")
    os.truncate(image, sum(PARTS[-1]) * MIB)


@contextmanager
def devices(image: Path, more: str = "") -> Iterator[list[str]]:
    """Both partitions as block devices, of which alone LVM knows."""
    if os.geteuid() != 0:
        cannot("LVM needs root")
    found = []
    try:
        for start, size in PARTS:
            words = ["--offset", str(start * MIB), "--sizelimit", str(size * MIB)]
            command = ["losetup", "--find", "--show", *words, image]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(done.stdout.strip())
        (image.parent / "lvm.conf").write_text(
            CONFIG.format(*found, folder=image.parent, more=more)
        )
        yield found
    finally:
        for device in found:
            subprocess.run(["losetup", "--detach", device], check=True)


def lvm(folder: Path, *words: str) -> str:
    environment = os.environ | {"LVM_SYSTEM_DIR": str(folder), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    done = subprocess.run(["lvm", *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def with_volumes(folder: Path, many: int = 40) -> tuple[Path, Path]:
    """An image whose logical volumes have a file system, put where LVM says that they are; and the
    folder with its files.
    """
    image, root, system = folder / "image", folder / "root", folder / "system"
    foreign.tree(root, many)
    (root / "times" / "at4107542400").unlink()  # mkfs writes none after 2038
    foreign.run("mkfs.ext4", "-q", "-b", "1024", "-d", root, system, "12M")
    partitioned(image)
    # without the kernel: no volume is there to be written to
    with devices(image, "activation = 0") as (first, second):
        lvm(folder, "vgcreate", "-s", "1M", "in-it", first, second)
        made = ("lvcreate", "-an", "-Zn", "-Wn", "-y", "in-it")
        lvm(folder, *made, "-L", "5M", "-n", "pieces", second)
        lvm(folder, "lvextend", "-L", "+7M", "in-it/pieces", first)
        lvm(folder, *made, "-L", "12M", "-i", "2", "-I", "64", "-n", "striped")
        words = ("--units", "b", "--nosuffix", "--reportformat", "json", "-o")
        columns = "seg_start_pe,seg_pe_ranges,stripe_size"
        (report,) = json.loads(lvm(folder, "lvs", "--segments", *words, columns))["report"]
        (other,) = json.loads(lvm(folder, "pvs", *words, "pe_start"))["report"]
    where = dict(zip((first, second), PARTS, strict=True))
    begin, contents = int(other["pv"][0]["pe_start"]), system.read_bytes()
    with open(image, "r+b") as file:
        for row in report["seg"]:
            places, extents = [], 0
            for one in row["seg_pe_ranges"].split():
                device, low, high = one.replace(":", "-").split("-")
                places.append((where[device][0] + int(low)) * MIB + begin)
                extents = int(high) - int(low) + 1
            at, step = int(row["seg_start_pe"]) * MIB, int(row["stripe_size"]) or extents * MIB
            for turn in range(extents * MIB // step):
                for place in places:
                    file.seek(place + turn * step)
                    file.write(contents[at : at + step])
                    at += step
    return image, root

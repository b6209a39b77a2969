# SPDX-License-Identifier: GPL-2.0-or-later
"""Monitor on LVM thin pools: ``make bench-lvm`` runs this in the test VM, which is slow; what
counts are the shares.

Twenty volumes in one pool; and one volume with a million mapped blocks, made by writing the pool's
metadata with thin_restore, so that no data is needed.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.lvm.conftest import CONFIG
from tests.lvm.kit import MIB, Group, LvmSite

VOLUMES = 20
BLOCKS = 1_000_000
BLOCK = 64 << 10


class Watched(subprocess.Popen):  # type: ignore[type-arg]
    """Notes how long each program ran."""

    spent: Counter[str] = Counter()

    def __init__(self, command: Any, **named: Any) -> None:
        self.command, self.started = command[0], time.monotonic()
        super().__init__(command, **named)

    def _wait(self, timeout: float | None) -> int:
        code: int = super()._wait(timeout)  # type: ignore[misc]
        if self.command:
            Watched.spent[self.command] += time.monotonic() - self.started  # type: ignore[assignment]
            self.command = ""
        return code


def measure(title: str, site: LvmSite) -> None:
    """One monitor of everything in the site, and where its time went."""
    Watched.spent.clear()
    start = time.monotonic()
    outcomes = site.monitor()
    wall = time.monotonic() - start
    theirs = sum(Watched.spent.values())
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in Watched.spent.most_common())
    changed = sum(outcome.changed or 0 for outcome in outcomes) / MIB
    print(f"| {title} | {wall:.2f} | {theirs / wall:.0%} | {parts} | {changed:,.1f} |", flush=True)


def write_some(device: Path, rng: random.Random, places: int, span: int) -> None:
    fd = os.open(device, os.O_WRONLY | os.O_DSYNC)
    for _ in range(places):
        os.pwrite(fd, b"changed", rng.randrange(span // BLOCK) * BLOCK)
    os.close(fd)


def twenty_volumes(group: Group, folder: Path) -> None:
    group.pool("vm-pool")
    site = LvmSite(
        folder / "twenty",
        group,
        "vm-pool",
        tuple(f"qube{n}/private" for n in range(VOLUMES)),
        8 * MIB,
    )
    rng = random.Random(1)
    site.backup()
    measure(f"{VOLUMES} volumes, nothing changed", site)
    for name in site.volumes:
        write_some(site.image(name), rng, 5, 8 * MIB)
    measure(f"{VOLUMES} volumes, 5 blocks changed in each", site)


def million_blocks(group: Group, folder: Path) -> None:
    """The mapping is scattered, so that no two of its blocks make one range."""
    group.pool("big", size=BLOCKS * BLOCK + (1 << 30), metadata=256 * MIB, block=64)
    site = LvmSite(folder / "big", group, "big", ("work/private",), BLOCKS * BLOCK)
    site.backup()
    site_snapshots = group.snapshots()
    group.lvm("lvremove", "--force", *(f"{group.name}/{name}" for name in site_snapshots))
    group.lvm("lvchange", "--activate", "n", f"{group.name}/vm-work-private", f"{group.name}/big")
    transaction = group.lvm(
        "lvs", "--noheadings", "-o", "transaction_id", f"{group.name}/big"
    ).strip()
    xml, blocks = folder / "metadata.xml", BLOCKS + 16384
    with open(xml, "w") as out:
        out.write(
            f'<superblock uuid="" time="1" transaction="{transaction}" data_block_size="128"'
            f' nr_data_blocks="{blocks}">\n'
        )
        out.write(
            f'<device dev_id="1" mapped_blocks="{BLOCKS}" transaction="0" creation_time="0"'
            ' snap_time="0">\n'
        )
        for block in range(BLOCKS):
            data = (block * 7) % BLOCKS
            out.write(f'<single_mapping origin_block="{block}" data_block="{data}" time="0"/>\n')
        out.write("</device>\n</superblock>\n")
    group.lvm("lvcreate", "--size", "256m", "--name", "metadata", group.name)
    subprocess.run(
        ["thin_restore", "-i", xml, "-o", group.device("metadata")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    swap = ["--yes", "--thinpool", f"{group.name}/big", "--poolmetadata", f"{group.name}/metadata"]
    group.lvm("lvconvert", *swap)
    group.lvm("lvchange", "--activate", "y", f"{group.name}/big", f"{group.name}/vm-work-private")
    measure("1,000,000 mapped blocks, the base snapshot lost", site)
    measure("1,000,000 mapped blocks, nothing changed", site)
    write_some(site.image(), random.Random(2), 1000, BLOCKS * BLOCK)
    measure("1,000,000 mapped blocks, 1,000 changed", site)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="sparsebak-bench-"))
    disk = folder / "disk"
    with open(disk, "wb") as file:
        file.truncate(80 << 30)
    device = subprocess.run(
        ["losetup", "--find", "--show", disk], capture_output=True, text=True, check=True
    ).stdout.strip()
    (folder / "lvm.conf").write_text(CONFIG.format(device=device, folder=folder, udev=0))
    os.environ["LVM_SYSTEM_DIR"] = str(folder)
    group = Group("bench")
    group.lvm("vgcreate", group.name, device)
    sys.stderr = open(os.devnull, "w")
    subprocess.Popen = Watched  # type: ignore[assignment, misc]
    print(
        "| monitor of | wall s | share of LVM's commands | seconds in each | MiB changed"
        " |\n|---|---|---|---|---|"
    )
    twenty_volumes(group, folder)
    million_blocks(group, folder)


if __name__ == "__main__":
    main()

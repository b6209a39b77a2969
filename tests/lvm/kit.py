# SPDX-License-Identifier: GPL-2.0-or-later
"""Sites whose volumes are logical volumes in a thin pool."""

import fcntl
import json
import os
import random
import struct
import subprocess
from pathlib import Path

from tests.kit import GRAIN, Site, some_bytes

MIB = 1 << 20
BLKDISCARD = 0x1277
POOLS = {"vm-pool": 64, "pool-512k": 512, "pool-2m": 2048}
"""Pools by name, with their block size in KiB."""


class Group:
    """A volume group."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pools: set[str] = set()

    def lvm(self, *command: str) -> str:
        done = subprocess.run(
            [command[0], "--quiet", *command[1:]], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def pool(
        self, name: str, size: int = 600 * MIB, metadata: int = 4 * MIB, block: int | None = None
    ) -> None:
        if name in self.pools:
            return
        chunk = f"{block or POOLS[name]}k"
        sizes = [
            "--size",
            f"{size}b",
            "--chunksize",
            chunk,
            "--poolmetadatasize",
            f"{metadata}b",
            "--poolmetadataspare",
            "n",
        ]
        self.lvm("lvcreate", *sizes, "--thinpool", name, self.name)
        self.pools.add(name)

    def volume(self, pool: str, name: str, size: int) -> Path:
        self.lvm(
            "lvcreate", "--virtualsize", f"{size}b", "--thinpool", pool, "--name", name, self.name
        )
        return self.device(name)

    def device(self, name: str) -> Path:
        return Path("/dev") / self.name / name

    def resize(self, name: str, size: int) -> None:
        words = ("--force", "--size", f"{size}b", f"{self.name}/{name}")
        try:
            self.lvm("lvresize", *words)
        except AssertionError:
            # From 2.03.17 on, where a volume without a known file system shrinks.
            self.lvm("lvresize", "--fs", "ignore", *words)

    def volumes(self) -> dict[str, dict[str, str]]:
        """Thin volumes by name."""
        raw = self.lvm(
            "lvs",
            "--reportformat",
            "json",
            "-o",
            "lv_name,pool_lv,lv_attr,lv_tags,thin_id",
            self.name,
        )
        return {
            volume["lv_name"]: volume
            for volume in json.loads(raw)["report"][0]["lv"]
            if volume["pool_lv"]
        }

    def snapshots(self) -> list[str]:
        """Names of all that is ours."""
        return sorted(name for name in self.volumes() if "+" in name)

    def held(self, pool: str) -> bool:
        """Whether anybody holds the pool's metadata snapshot."""
        return self.status(pool)[6] != "-"

    def status(self, pool: str) -> list[str]:
        done = subprocess.run(
            ["dmsetup", "status", self.target(pool)], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    def target(self, pool: str) -> str:
        return f"{self.name.replace('-', '--')}-{pool.replace('-', '--')}-tpool"

    def message(self, pool: str, text: str) -> None:
        subprocess.run(["dmsetup", "message", self.target(pool), "0", text], check=True)

    def empty(self) -> None:
        """Remove every thin volume, and check that no metadata snapshot was left."""
        if names := [f"{self.name}/{name}" for name in self.volumes()]:
            self.lvm("lvremove", "--force", *names)
        for pool in self.pools:
            assert not self.held(pool), f"{pool}: a metadata snapshot was left reserved"


class LvmSite(Site):
    """See Site; ``image`` gives a volume's device."""

    def __init__(
        self,
        root: Path,
        group: Group,
        pool: str,
        volumes: tuple[str, ...],
        size: int,
        **named: object,
    ) -> None:
        self.group, self.pool_name, self.size = group, pool, size
        super().__init__(root, driver="lvm_thin", volumes=volumes, **named)  # type: ignore[arg-type]

    def _make(self) -> None:
        self.root.mkdir(parents=True)
        lines = [
            'state_dir = "dom0"',
            "threads = 2",
            f'[[pool]]\nname = "p"\ndriver = "lvm_thin"\nvolume_group = "{self.group.name}"',
        ]
        lines.append(f'thin_pool = "{self.pool_name}"')
        for name in self.volumes:
            qube, volume = name.split("/")
            lines.append(
                f'[[volume]]\nqube = "{qube}"\nvolume = "{volume}"\npool = "p"\nvid ='
                f' "{self.lv(name)}"'
            )
            self.group.volume(self.pool_name, self.lv(name), self.size)
        self.config.write_text("\n".join(lines) + "\n")

    def lv(self, name: str = "work/private") -> str:
        return "vm-" + name.replace("/", "-")

    def image(self, name: str = "work/private") -> Path:
        return self.group.device(self.lv(name))

    def snapshots(self, name: str = "work/private") -> list[str]:
        prefix = "vm-sparsebak+" + name.replace("/", "+") + "+"
        return [snapshot for snapshot in self.group.snapshots() if snapshot.startswith(prefix)]

    def disturb(self, rng: random.Random) -> None:
        scribble(self.image(), rng, 3)
        fd = os.open(self.image(), os.O_RDWR | os.O_SYNC)
        os.pwrite(fd, rng.randbytes(100), rng.randrange(self.size - 100))
        os.close(fd)


def scribble(device: Path, rng: random.Random, times: int = 4) -> None:
    """Random writes and discards, all of them on disk at the end."""
    fd = os.open(device, os.O_RDWR)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        for _ in range(times):
            at = rng.randrange(size)
            if rng.randrange(5) == 0:
                start, length = at // 4096 * 4096, rng.randrange(1, 3 * MIB) // 4096 * 4096
                fcntl.ioctl(fd, BLKDISCARD, struct.pack("QQ", start, min(length, size - start)))
            else:
                os.pwrite(fd, some_bytes(rng, min(size - at, rng.randrange(1, 5 * GRAIN))), at)
        os.fsync(fd)
    finally:
        os.close(fd)

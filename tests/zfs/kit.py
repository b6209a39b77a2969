# SPDX-License-Identifier: GPL-2.0-or-later
"""Sites whose volumes are ZFS volumes, in a pool on a file."""

import fcntl
import os
import random
import struct
import subprocess
import threading
import time
from pathlib import Path

from dom0_agent.config import Pool, Volume, devices
from tests.kit import GRAIN, Site, some_bytes
from tests.patience import PATIENCE, until

MIB = 1 << 20
ZVOLS = Path("/dev/zvol")
BLKZNAME, BLKDISCARD = 0x8100127D, 0x1277


def zfs(*words: str) -> str:
    """Run a command of ZFS; zpool's begin with that word."""
    command = words if words[0] == "zpool" else ("zfs", *words)
    deadline = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        # somebody looks at what a new device is
        if "busy" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


class Links:
    """What udev does, on a machine without it: a link to each device, by its volume's name."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        made: dict[str, str] = {}
        looked = 0.0
        while not self.ended.wait(0.05):
            devices = {name for name in os.listdir("/dev") if name.startswith("zd")}
            if devices == made.keys() and time.monotonic() < looked + 1:  # for those renamed
                continue
            looked = time.monotonic()
            found = {device: name for device in devices if (name := self._name(device))}
            for device, name in made.items():
                if found.get(device) != name and name not in found.values():
                    (ZVOLS / name).unlink(missing_ok=True)
            for device, name in found.items():
                if made.get(device) != name:
                    link = ZVOLS / name
                    link.unlink(missing_ok=True)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(f"/dev/{device}")
            made = found

    @staticmethod
    def _name(device: str) -> str:
        try:
            fd = os.open(f"/dev/{device}", os.O_RDONLY)
        except OSError:
            return ""
        try:
            return fcntl.ioctl(fd, BLKZNAME, bytes(256)).partition(b"\0")[0].decode()
        except OSError:
            return ""
        finally:
            os.close(fd)

    def end(self) -> None:
        self.ended.set()
        self.thread.join()


class Container:
    """A dataset with volumes in it, as one pool of the agent, or of Qubes."""

    def __init__(self, name: str, *options: str) -> None:
        self.name = name
        given = [word for option in ("mountpoint=none", *options) for word in ("-o", option)]
        zfs("create", *given, name)

    def volume(self, name: str, size: int, block: str = "16k") -> Path:
        zfs("create", "-s", "-V", str(size), "-o", f"volblocksize={block}", f"{self.name}/{name}")
        return self.device(name)

    def device(self, name: str) -> Path:
        """Waits for it, as udev does its work later."""
        path = ZVOLS / self.name / name
        until(path.exists)
        return path

    def resize(self, name: str, size: int) -> None:
        zfs("set", f"volsize={size}", f"{self.name}/{name}")

    def listed(self, kind: str = "snapshot") -> list[str]:
        """Names below the container, from its end on."""
        raw = zfs("list", "-H", "-r", "-t", kind, "-o", "name", self.name)
        return [line.removeprefix(self.name + "/") for line in raw.splitlines()]

    def ours(self) -> list[str]:
        """All that is ours."""
        return [name for name in self.listed("volume,snapshot") if "sparsebak" in name]

    def place(self, name: str) -> Volume:
        qube, _, volume = name.partition("/")
        return Volume(qube, volume, Pool("p", "zfs", devices(self.name)), name)


class ZfsSite(Site):
    """See Site; ``image`` gives a volume's device."""

    def __init__(self, root: Path, container: Container, size: int) -> None:
        self.container, self.size = container, size
        super().__init__(root, driver="zfs")

    def _make(self) -> None:
        self.root.mkdir(parents=True)
        lines = [
            'state_dir = "dom0"',
            "threads = 2",
            f'[[pool]]\nname = "p"\ndriver = "zfs"\ndataset = "{self.container.name}"',
        ]
        for name in self.volumes:
            qube, volume = name.split("/")
            lines.append(
                f'[[volume]]\nqube = "{qube}"\nvolume = "{volume}"\npool = "p"\nvid = "{name}"'
            )
            zfs("create", "-o", "mountpoint=none", f"{self.container.name}/{qube}")
            self.container.volume(name, self.size)
        self.config.write_text("\n".join(lines) + "\n")

    def kept(self) -> list[str]:
        """All that is ours in the pool once no clone is left. Whoever looks at what a new device
        is, as udev does, may have one open as a call ends: then it goes with the next.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            found = self.container.ours()
            if all("@" in name for name in found) or time.monotonic() > deadline:
                return found
            self.monitor()

    def image(self, name: str = "work/private") -> Path:
        return self.container.device(name)


def scribble(device: Path, rng: random.Random, times: int = 4) -> None:
    """Random writes and discards, all of them on disk at the end."""
    fd = os.open(device, os.O_RDWR)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        for _ in range(times):
            at = rng.randrange(size)
            if rng.randrange(3) == 0:
                start, length = at // 4096 * 4096, rng.randrange(4096, 3 * MIB) // 4096 * 4096
                fcntl.ioctl(fd, BLKDISCARD, struct.pack("QQ", start, min(length, size - start)))
            else:
                os.pwrite(fd, some_bytes(rng, min(size - at, rng.randrange(1, 5 * GRAIN))), at)
        os.fsync(fd)
    finally:
        os.close(fd)

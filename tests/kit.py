# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests are made of: a site with agent and archive, a transport within the process, images
that change at random.
"""

import contextlib
import hashlib
import os
import random
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from unittest import mock

from backup_vm.agent.client import Agent
from backup_vm.archive.archive import Archive
from backup_vm.archive.image import Image
from backup_vm.archive.opening import create_archive, open_archive
from backup_vm.archive.parameters import Parameters
from backup_vm.jobs.backup import BackupRun
from backup_vm.jobs.feeding import feed, feed_differing
from backup_vm.jobs.outcome import Report
from backup_vm.jobs.reading import assemble, read_image
from backup_vm.terminal.progress import Progress
from backup_vm.volumes import stored_volumes
from common.text import session_name
from dom0_agent.admin import archives
from dom0_agent.admin.monitoring import Outcome, monitor
from dom0_agent.catalog import open_catalog
from dom0_agent.catalog.static import StaticCatalog
from dom0_agent.config import Config, Volume, load
from dom0_agent.keyring import Keyring
from tests.in_process import InProcess
from wire import slots
from wire.chunks import SUITE_SHA256, Keys
from wire.messages import MODE_OPEN, VolumeEntry
from wire.names import Restoring

PASSPHRASE = b"tests only"
Feed = Callable[[IO[bytes]], None]
GRAIN = 64 * 1024


class Site:
    """A folder with pool, agent and archive, as a user would have them."""

    def __init__(
        self,
        root: Path,
        driver: str = "file",
        sealed: bool = True,
        chunk_size: int = 64 * 1024,
        volumes: tuple[str, ...] = ("work/private",),
        make: bool = True,
        suite: int = SUITE_SHA256,
    ) -> None:
        self.root, self.pool, self.state, self.archive = (
            root,
            root / "pool",
            root / "dom0",
            root / "archive",
        )
        self.config = root / "agent.toml"
        self.recovery: bytes | None = None
        self.label, self.driver, self.volumes = "tests", driver, volumes
        if make:
            self._make()
            self.recovery = self.add_archive("tests", self.archive, sealed, chunk_size, suite)

    def _make(self) -> None:
        """Make what is in the pool, and agent.toml."""
        self.pool.mkdir(parents=True)
        lines = [
            'state_dir = "dom0"',
            "threads = 2",
            f'[[pool]]\nname = "p"\ndriver = "{self.driver}"\npath = "pool"',
        ]
        for name in self.volumes:
            qube, volume = name.split("/")
            lines.append(
                f'[[volume]]\nqube = "{qube}"\nvolume = "{volume}"\npool = "p"\nvid ='
                f' "{qube}-{volume}.img"'
            )
            self.image(name).touch()
        self.config.write_text("\n".join(lines) + "\n")

    def add_archive(
        self,
        label: str,
        folder: Path,
        sealed: bool = True,
        chunk_size: int = 64 * 1024,
        suite: int = SUITE_SHA256,
        retention: int = 0,
    ) -> bytes | None:
        """Make an archive and return its recovery key (sealed mode)."""
        log_n, slots.SCRYPT_LOG_N = slots.SCRYPT_LOG_N, 10  # the cost is measured elsewhere
        try:
            keyring = Keyring(load(self.config).state_dir)
            passphrase = PASSPHRASE if sealed else None
            _, recovery = archives.add(keyring, label, "backup-vm", suite, chunk_size, passphrase)
        finally:
            slots.SCRYPT_LOG_N = log_n
        entry, found, _ = Agent(InProcess(self.config)).enroll(label)
        master = entry.key if entry.mode == MODE_OPEN else None
        kind = entry.suite, entry.chunk_size, entry.created
        create_archive(
            folder, Parameters(entry.archive, label, *kind, tuple(found), master, retention)
        )
        return recovery

    def image(self, name: str = "work/private") -> Path:
        return self.pool / (name.replace("/", "-") + ".img")

    def agent(self, archive: Archive | None = None, caller: str = "backup-vm") -> Agent:
        agent = Agent(InProcess(self.config, caller))
        if archive is not None:
            agent.use(archive.parameters.archive, archive.parameters.chunk_size)
        return agent

    @contextlib.contextmanager
    def open(self, writing: bool = False, folder: Path | None = None) -> Iterator[Archive]:
        with open_archive(folder or self.archive, writing) as archive:
            yield archive

    def listed(self, archive: Archive) -> list[VolumeEntry]:
        return self.agent(archive).list()

    def backup(self, *names: str, folder: Path | None = None, agent: Agent | None = None) -> Report:
        with self.open(True, folder) as archive:
            agent = agent or self.agent(archive)
            agent.use(archive.parameters.archive, archive.parameters.chunk_size)
            volumes = [v for v in agent.list() if not names or f"{v.qube}/{v.volume}" in names]
            try:
                report = BackupRun(archive, agent, Progress()).run(volumes)
            finally:
                agent.close()
        assert not report.failed, report.failed
        return report

    def keys(self, archive: Archive) -> Keys:
        keys = archive.parameters.keys(None if archive.parameters.master else PASSPHRASE)
        assert keys is not None
        return keys

    def images(self, name: str = "work/private", folder: Path | None = None) -> dict[str, bytes]:
        """Every session of a volume, assembled and proven: contents by session name, oldest
        first.
        """
        found = {}
        with self.open(folder=folder) as archive:
            keys = self.keys(archive)
            for volume in stored_volumes(archive, keys, {}):
                if volume.name != name:
                    continue
                for session in volume.sessions:
                    image, target = (
                        archive.image(list(volume.sessions), session),
                        self.root / "assembled.img",
                    )
                    assemble(archive, image, keys, name, target, Progress())
                    found[session.name] = target.read_bytes()
                    target.unlink()
        return found

    def verify_all(self) -> None:
        """Every session proves authentic with the key."""
        with self.open() as archive:
            keys = self.keys(archive)
            for volume in stored_volumes(archive, keys, {}):
                for session in volume.sessions:
                    image = archive.image(list(volume.sessions), session)
                    read_image(archive, image, keys, volume.name, Progress(), None)

    def restore(
        self,
        session: int = -1,
        name: str = "work/private",
        to: str | None = None,
        caller: str = "backup-vm",
        whole: bool = False,
    ) -> int:
        """Restore a session; returns how many chunks dom0 wanted."""
        qube, volume = (to or name).split("/")
        with self.open() as archive:
            named = next(
                v for v in stored_volumes(archive, self.keys(archive), {}) if v.name == name
            )
            image = archive.image(list(named.sessions), named.sessions[session])
            agent = self.agent(archive, caller)
            asked = self.asking(agent, image, f"{qube}/{volume}")
            if whole or volume == "settings" or qube == "dom0":
                agent.restore(asked, feed(archive, image, name, Progress()))
                return image.chunks
            fed = feed_differing(archive, image, name, Progress())
            return len(agent.restore_differing(asked, image.chunks, fed)[1])

    def asking(self, agent: Agent, image: Image, to: str) -> Restoring:
        """What to ask for: for a session as it is, older or not."""
        clear = image.session.clear
        qube, volume = to.split("/")
        newest = {entry.session for entry in agent.list() if entry.volume_id == clear.volume_id}
        return Restoring(qube, volume, session_name(clear.time), clear.session not in newest)

    def restored(self, agent: Agent, image: Image, to: str, it: Feed, absent: bool = False) -> None:
        agent.restore(self.asking(agent, image, to), it, absent)

    def scrubbed(self) -> list[Any]:
        from backup_vm.archive.scrub import scrub

        with self.open(True) as archive:
            return [*scrub(archive, Progress()), *archive.warnings]

    def contents(self, name: str = "work/private") -> bytes:
        return self.image(name).read_bytes()

    def disturb(self, rng: random.Random) -> None:
        """Change the volume here and there, not its size, and at least one grain for certain."""
        change(self.image(), rng, resize=False)
        fd = os.open(self.image(), os.O_RDWR)
        os.pwrite(fd, rng.randbytes(100), rng.randrange(os.lseek(fd, 0, os.SEEK_END) - 100))
        os.fsync(fd)
        os.close(fd)

    def monitor(self) -> list[Outcome]:
        config = load(self.config)
        keyring = Keyring(config.state_dir)
        outcomes = list(monitor(config.state_dir, list(open_catalog(config).volumes()), keyring))
        errors = [outcome.error for outcome in outcomes if outcome.error]
        assert not errors, (errors, still_held())
        return outcomes

    def snapshots(self, name: str = "work/private") -> list[str]:
        folder = self.pool / ".sparsebak" / name
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@contextlib.contextmanager
def own_domains() -> Iterator[None]:
    """Each volume listed in agent.toml is a deduplication domain of its own, as the private volumes
    of qubes are.
    """

    def own(volume: Volume) -> Volume:
        domain = hashlib.blake2b(volume.name.encode(), digest_size=16).digest()
        return volume._replace(dedup_domain=domain)

    def make(catalog: StaticCatalog, config: Config) -> None:
        catalog._volumes = tuple(map(own, config.volumes))

    with mock.patch.object(StaticCatalog, "__init__", make):
        yield


def still_held() -> tuple[list[str], list[str]]:
    """What else this process has at work: its threads, and what its descriptors stand for."""
    files = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of this listing
            files.append(os.readlink(f"/proc/self/fd/{number}"))
    return [thread.name for thread in threading.enumerate()], files


def fill(image: Path, size: int, seed: int = 0) -> None:
    """A sparse image with about a third of it filled, in places that do not fit chunks."""
    rng = random.Random(seed)
    with open(image, "wb") as file:
        file.truncate(size)
        for _ in range(max(3, size // (8 * GRAIN))):
            at = rng.randrange(max(1, size - 1000))
            file.seek(at)
            file.write(some_bytes(rng, min(size - at, rng.randrange(1, 3 * GRAIN))))


def backed_up(root: Path) -> Site:
    """A site whose volume of twenty chunks has one session."""
    site = Site(root)
    fill(site.image(), 20 * GRAIN)
    site.backup()
    return site


def some_bytes(rng: random.Random, length: int) -> bytes:
    """Bytes that compress, do not compress, repeat, or are zeros."""
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(length)
    if kind == 1:
        return (b"the same again " * (length // 15 + 1))[:length]
    if kind == 2:
        return random.Random(rng.randrange(3)).randbytes(length)
    return rng.randbytes(length)


def change(image: Path, rng: random.Random, resize: bool = True) -> None:
    """A few random writes, holes and changes of size."""
    with open(image, "r+b") as file:
        for _ in range(rng.randrange(1, 6)):
            size = os.fstat(file.fileno()).st_size
            kind = rng.randrange(8)
            if kind == 0 and resize:
                file.truncate(rng.randrange(0, 2 * size + 1) if rng.randrange(4) else size // 3)
            elif kind == 1 and size:
                at = rng.randrange(size)
                punch(file.fileno(), at, min(size - at, rng.randrange(1, 6 * GRAIN)))
            elif size:
                at = rng.randrange(size)
                file.seek(at)
                file.write(some_bytes(rng, min(size - at, rng.randrange(1, 4 * GRAIN))))
            file.flush()


def truly_changed(old: bytes, new: bytes) -> set[int]:
    """Grains, below the smaller size, whose bytes differ."""
    size = min(len(old), len(new))
    return {
        at // GRAIN
        for at in range(0, size, GRAIN)
        if old[at : min(at + GRAIN, size)] != new[at : min(at + GRAIN, size)]
    }


def punch(fd: int, at: int, length: int) -> None:
    """Make a hole."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.fallocate(fd, 3, ctypes.c_longlong(at), ctypes.c_longlong(length)) == 0


def in_child(action: Callable[[], object]) -> int:
    """Do something in a child process that ends with it, whatever happens; returns its exit code
    (0, or 1 for an error).
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:  # the parent sees no more than the code
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands run on two disks, archive and dom0, whose power is cut at any point: what is found when
they are on again.
"""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from backup_vm.archive import lease_files, pack_writer
from backup_vm.archive.storage.local import LocalStorage
from tests.faults.harness import VOLUMES, Images, Place, computed, run, write_passphrase
from tests.kit import GRAIN, Site
from tests.powercut.disks import FLUSH, MARK, Record, Recorder, Replay, records
from wire import slots

if TYPE_CHECKING:
    from tests.powercut.operations import Operation

FILE_SYSTEMS = {
    "ext4": (["mkfs.ext4", "-q"], 64 << 20, "loop"),
    "xfs": (["mkfs.xfs", "-q"], 300 << 20, "loop"),
    "btrfs": (["mkfs.btrfs", "-q", "-m", "single", "-d", "single"], 200 << 20, "loop"),
    "btrfs-zstd": (["mkfs.btrfs", "-q"], 256 << 20, "loop,compress=zstd"),
}
STARTING = lease_files._BEGINNING + 10
"""Seconds until a machine is on again and a backup begins: a lease whose contents the cut took is
known by its age.
"""
SIZE = 16 * GRAIN + 999


@dataclass(frozen=True)
class Fact:
    """What is in the archive after a command. ``doomed``: sessions that it removes."""

    name: str
    images: Images
    doomed: frozenset[str] = frozenset()


class _TwoDisks(Site):
    """A site whose archive is on another disk."""

    def __init__(self, root: Path, archive: Path, driver: str) -> None:
        super().__init__(root, driver=driver, volumes=VOLUMES, make=False)
        self.archive = archive

    def make(self) -> None:
        self._make()
        self.add_archive("tests", self.archive)


@dataclass
class Campaign:
    """One recording and its cuts. ``kinds`` are the file systems of the archive's disk and of
    dom0's; ``folder`` is for the images, in memory at best. ``problems`` is what was found."""

    folder: Path
    kinds: tuple[str, str] = ("ext4", "ext4")
    driver: str = "file"
    seed: int = 1
    problems: list[str] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    log: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.images = [self.folder / "archive.img", self.folder / "dom0.img"]
        self.mounts = [self.folder / "archive", self.folder / "dom0"]
        for mount in self.mounts:
            mount.mkdir(parents=True, exist_ok=True)
        self.archive = str(self.mounts[0] / "archive")
        self.place = Place(self.mounts[1], {})

    # --- disks

    def mount(self, images: list[Path]) -> None:
        """Mount both disks. Raises CalledProcessError."""
        for image, mount, kind in zip(images, self.mounts, self.kinds, strict=True):
            options = FILE_SYSTEMS[kind][2]
            subprocess.run(
                ["mount", "-o", options, image, mount], check=True, capture_output=True, text=True
            )

    def unmount(self) -> None:
        """Unmount what is mounted; an image that is copied while it is mounted is none of a disk
        that was left in order.
        """
        for mount in self.mounts:
            deadline = time.monotonic() + 30
            while os.path.ismount(mount):
                done = subprocess.run(["umount", mount], capture_output=True, text=True)
                assert time.monotonic() < deadline, done.stderr
                if done.returncode:
                    time.sleep(0.1)

    # --- recording

    def record(self, operations: "Callable[[Campaign], Iterator[Operation]]") -> None:
        """Make disks and a site, then run the operations and keep all that they write."""
        for image, kind in zip(self.images, self.kinds, strict=True):
            make, size, _ = FILE_SYSTEMS[kind]
            with open(image, "wb") as file:
                file.truncate(size)
            subprocess.run([*make, image], check=True, capture_output=True)
        self.mount(self.images)
        try:
            self._build()
        finally:
            self.unmount()
        live = [image.with_suffix(".live") for image in self.images]
        for image, other in zip(self.images, live, strict=True):
            subprocess.run(["cp", "--sparse=always", image, other], check=True)
        log = self.folder / "log"
        recorder = Recorder(self.folder / "fuse", log, live)
        try:
            self.mount([recorder.path(0), recorder.path(1)])
            try:
                self._operate(recorder, operations)
            finally:
                self.unmount()
        finally:
            recorder.close()
        self.log = records(log)

    def _build(self) -> None:
        site = _TwoDisks(self.place.root / "site", Path(self.archive), self.driver)
        computed(site.make)
        write_passphrase(self.place.root)
        (self.place.root / "home").mkdir()
        rng = random.Random(self.seed)
        for name in VOLUMES:
            site.image(name).write_bytes(rng.randbytes(SIZE))
        for _ in range(3):
            self.expect(0, "backup")
            self.scribble(rng)

    def _operate(
        self, recorder: Recorder, operations: "Callable[[Campaign], Iterator[Operation]]"
    ) -> None:
        self.facts = [Fact("the beginning", self.found())]
        for operation in operations(self):
            recorder.mark(f"begin {operation.name}")
            operation.action()
            recorder.mark(f"end {operation.name}")
            self.facts.append(Fact(operation.name, self.found(), operation.doomed))

    def expect(self, code: int, *words: str) -> None:
        """Run a command that is to end so."""
        done = self.place.command(*words, archive=self.archive)
        assert done.code == code, (words, done)

    def found(self) -> Images:
        """All that is in the archive, assembled."""
        return self.place.images(self.archive)

    def scribble(self, rng: random.Random, synced: bool | None = None) -> None:
        """Change both volumes, as running qubes do."""
        for name in VOLUMES:
            with open(self.place.site.image(name), "r+b") as file:
                for _ in range(rng.randrange(1, 5)):
                    file.seek(rng.randrange(14 * GRAIN))
                    file.write(rng.randbytes(rng.randrange(1, 2 * GRAIN)))
                file.flush()
                if rng.random() < 0.5 if synced is None else synced:
                    os.fsync(file.fileno())

    # --- cutting

    def positions(self, count: int | None, rng: random.Random) -> list[int]:
        """Where to cut: before, at and after flushes, and anywhere between. None: at every flush,
        and as often between.
        """
        begin = next(at for at, record in enumerate(self.log) if record.kind == MARK)
        flushes = [at for at in range(begin, len(self.log)) if self.log[at].kind == FLUSH]
        if count is None:
            return sorted(flushes + [rng.randrange(begin, len(self.log)) for _ in flushes])
        found = [
            (
                rng.choice(flushes) + rng.choice((0, 1))
                if number % 2
                else rng.randrange(begin, len(self.log))
            )
            for number in range(count)
        ]
        return sorted(found)

    def cut(self, count: int | None) -> int:
        """Cut the power so often; returns how often."""
        rng = random.Random(self.seed + 1)
        replay, positions = Replay(self.log, self.images, self.folder), self.positions(count, rng)
        for position in positions:
            lost = replay.to(position, rng)
            must, may, name = self._expected(position)
            where = f"cut {position} in {name} ({lost})"
            try:
                self.mount(replay.cut)
                self._wait_for_the_machine()
                self.problems += [f"{where}: {p}" for p in self._check(must, may, rng)]
            except subprocess.CalledProcessError as error:
                self.problems.append(f"{where}: cannot mount: {error.stderr}")
            except OSError as error:  # the file system itself has lost something
                self.problems.append(f"{where}: {error}")
            finally:
                self.unmount()
        return len(positions)

    def _wait_for_the_machine(self) -> None:
        """Let leases be as old as they are when a machine has started again, and what is beside
        them for a moment so old that nobody is waited for.
        """
        for path in Path(self.archive).glob("locks/*"):
            age = STARTING if path.name.startswith("writer") else lease_files.STALE + STARTING
            then = path.stat().st_mtime - age
            os.utime(path, (then, then))

    def _expected(self, position: int) -> tuple[Images, Images, str]:
        """Sessions that have to be there, those that can be, and what ran."""
        done, running = 0, False
        for record in self.log[:position]:
            if record.kind == MARK:
                running = record.data.startswith(b"begin")
                done += not running
        must = {name: dict(found) for name, found in self.facts[done].images.items()}
        if not running:
            return must, must, f"after {self.facts[done].name}"
        after = self.facts[done + 1]
        may = {name: must[name] | after.images[name] for name in must}
        for found in must.values():
            for session in after.doomed & set(found):
                del found[session]
        return must, may, after.name

    def _check(self, must: Images, may: Images, rng: random.Random) -> Iterator[str]:
        """What is wrong on the disks that are mounted."""
        first = rng.choice((("list",), ("backup",), ("backup",), ("scrub",), ("monitor",)))
        if first == ("monitor",):
            done = run(lambda: self.place.agent_called("monitor"))
        else:
            done = self.place.command(*first, archive=self.archive)
        yield from done.problems()
        if done.code:
            yield f"{first[0]} at first: exit {done.code}: {done.text[-500:]}"
        yield from self._compare(must, may, f"after {first[0]}")
        for when in ("the next backup", "the one after it"):
            done = self.place.command("backup", archive=self.archive)
            yield from done.problems()
            if done.code:
                yield f"{when}: exit {done.code}: {done.text[-500:]}"
            yield from self._compare(must, may, f"after {when}", newest=True)
            self.scribble(rng)
        done = self.place.command("scrub", archive=self.archive)
        if done.code:
            yield f"scrub: exit {done.code}: {done.text[-500:]}"
        left = [
            str(path)
            for mount in self.mounts
            for path in mount.rglob("*")
            if path.name.endswith((".tmp", ".partial", "-restore", ".log"))
            or path.parent.name == "locks"
        ]
        if left:
            yield f"left over: {left}"
        for name in VOLUMES:
            if len(self.place.site.snapshots(name)) != 1:
                yield f"snapshots of {name}: {self.place.site.snapshots(name)}"

    def _compare(self, must: Images, may: Images, when: str, newest: bool = False) -> Iterator[str]:
        try:
            found = self.found()
        except Exception as error:
            yield f"{when}: the archive cannot be read: {type(error).__name__}: {error}"
            return
        for name in VOLUMES:
            for session, image in must[name].items():
                if found[name].get(session) != image:
                    yield (
                        f"{when}: {name} {session} is"
                        f" {'another' if session in found[name] else 'lost'}"
                    )
            for session, image in found[name].items():
                if may[name].get(session, image) != image:
                    yield f"{when}: {name} {session} holds something else"
            if newest and [*found[name].values()][-1:] != [self.place.site.contents(name)]:
                yield f"{when}: the newest session of {name} is not the volume"


def small() -> None:
    """Packs and costs as tests have them; in a process that does nothing else, or under a patch."""
    LocalStorage.pack_size = 3 * GRAIN
    pack_writer.RECORD_SECONDS = 0
    slots.SCRYPT_LOG_N = 10


def clean(folder: Path) -> None:
    """Remove a campaign's images."""
    shutil.rmtree(folder, ignore_errors=True)

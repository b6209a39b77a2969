# SPDX-License-Identifier: GPL-2.0-or-later
"""Years of an archive on two disks in turns: hourly backups, prunes, kills, volumes that come
and go, old copies put back.

Time is given, not slept. A short life has as many events in fewer days; ``make longlife`` lives the
whole.
"""

import hashlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backup_vm import cli
from backup_vm.agent import transport
from backup_vm.archive import pack_writer, references
from backup_vm.archive.prune import prune
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.jobs.reading import assemble
from backup_vm.terminal.progress import Progress
from backup_vm.volumes import stored_volumes
from dom0_agent.admin import cli as agent_cli
from tests.commands import Commands
from tests.conftest import folder_in_memory
from tests.in_process import InProcess
from tests.kit import GRAIN, Site, fill, punch
from wire.chunks import ZERO_ID

LONG = os.environ.get("SPARSEBAK_LONG") == "1"
DAYS = int(os.environ.get("SPARSEBAK_DAYS", "730" if LONG else "48"))
HOURS = (8, 10, 12, 14, 16, 18, 20) if LONG else (9,)
SEED = int(os.environ.get("SPARSEBAK_SEED", "1"))
BIRTH = 1_700_000_000
DAY, HOUR = 86400, 3600
RULES = ("--keep-hourly", "12", "--keep-daily", "7", "--keep-weekly", "4", "--keep-monthly", "6")


class Life:
    """One life. ``truth``: what each session must hold, by archive and id; ``tried``: what a run
    that died may have seen.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.folder, self.patch, self.capsys = folder, monkeypatch, capsys
        self.rng, self.now = random.Random(SEED), float(BIRTH)
        self.volumes = {n: n.replace("/", "-") + ".img" for n in ("work/private", "mail/private")}
        self.volumes["tmpl/root"] = "tmpl-root.img"
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(LocalStorage, "pack_size", 6 * GRAIN)
        monkeypatch.setattr(pack_writer, "RECORD_SECONDS", 0.02)
        self.site = Site(folder / "site", volumes=tuple(self.volumes), make=False)
        self.site._make()
        self.disks = {label: folder / label for label in "AB"}
        for label, disk in self.disks.items():
            self.site.add_archive(label, disk)
        monkeypatch.setattr(transport, "open_transport", lambda *_: InProcess(self.site.config))
        monkeypatch.setenv("SPARSEBAK_AGENT", f"local:{self.site.config}")
        self.commands = Commands(self.site, capsys)
        self.commands.settings("")
        self.truth: dict[tuple[str, str], str] = {}
        self.tried: dict[str, set[str]] = {}
        self.faults: list[str] = []
        self.kept = Path()
        for seed, name in enumerate(self.volumes):
            fill(self.image(name), (14 + 9 * seed) * GRAIN + 321 * seed, SEED + seed)

    @property
    def day(self) -> int:
        return int(self.now - BIRTH) // DAY

    @property
    def label(self) -> str:
        """The disk that is attached: they are changed every week."""
        return "AB"[self.day // (7 if LONG else 2) % 2]

    def image(self, name: str) -> Path:
        return self.site.pool / self.volumes[name]

    def fault(self, text: str) -> None:
        self.faults.append(f"day {self.day}: {text}")

    def configure(self) -> None:
        lines = ['state_dir = "dom0"', "threads = 2"]
        lines.append('[[pool]]\nname = "p"\ndriver = "file"\npath = "pool"')
        for name, vid in self.volumes.items():
            qube, volume = name.split("/")
            lines.append(f'[[volume]]\nqube = "{qube}"\nvolume = "{volume}"\npool = "p"')
            lines.append(f'vid = "{vid}"')
        self.site.config.write_text("\n".join(lines) + "\n")

    def run(self, *words: str, expect: tuple[int, ...] = (0,)) -> Any:
        """A command on the disk that is attached; what it says as data where it can."""
        config = str(self.site.root / "config.toml")
        archive = str(self.disks[self.label])
        code = cli.main(["--config", config, "--archive", archive, *words])
        out, err = self.capsys.readouterr()
        if code not in expect:
            self.fault(f"{' '.join(words)}: exit code {code}: {err.strip()[-300:]}")
        return out

    def monitor(self) -> None:
        code = agent_cli.main(["--config", str(self.site.config), "monitor", "--quiet"])
        _, err = self.capsys.readouterr()
        if code:
            self.fault(f"monitor: exit code {code}: {err.strip()[-300:]}")

    def note_contents(self) -> dict[str, str]:
        contents = {name: digest(self.image(name).read_bytes()) for name in self.volumes}
        for name, one in contents.items():
            self.tried.setdefault(name, set()).add(one)
        return contents

    def back_up(self, expect: tuple[int, ...] = (0,)) -> None:
        import json

        contents = self.note_contents()
        out = self.run("backup", "--ignore-free-space", "--json", expect=expect)
        latest: dict[str, str] = {}
        for done in json.loads(out)["sessions"] if out else ():
            latest[f"{done['qube']}/{done['volume']}"] = done["id"]
        for name, session in latest.items():
            self.truth[self.label, session] = contents[name]
        self.run("prune", *RULES, "--min-age", "0d", "--yes", expect=expect)

    def killed(self) -> None:
        """A backup that is killed at some moment."""
        self.note_contents()
        pid = os.fork()
        if pid == 0:
            try:
                self.back_up()
            finally:
                os._exit(0)
        time.sleep(self.rng.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.capsys.readouterr()

    def disturb(self) -> None:
        rng = self.rng
        for name in self.volumes:
            if rng.random() < 0.5:
                continue
            with open(self.image(name), "r+b") as file:
                size = os.fstat(file.fileno()).st_size
                for _ in range(rng.randrange(1, 4)):
                    at, kind = rng.randrange(max(1, size)), rng.random()
                    length = min(size - at, rng.randrange(1, 2 * GRAIN))
                    if kind < 0.1:
                        punch(file.fileno(), at, max(1, length))
                        continue
                    again = random.Random(rng.randrange(5))  # contents that come again
                    file.seek(at)
                    file.write((again if kind < 0.3 else rng).randbytes(length))
                if rng.random() < 0.02:
                    file.truncate(rng.randrange(30 * GRAIN))

    def images(self) -> Iterator[tuple[str, str, str]]:
        """Name, session and digest of all that is on the disk."""
        target = self.folder / "assembled.img"
        with self.site.open(folder=self.disks[self.label]) as archive:
            keys = self.site.keys(archive)
            for volume in stored_volumes(archive, keys, {}):
                for session in volume.sessions:
                    image = archive.image(list(volume.sessions), session)
                    assemble(archive, image, keys, volume.name, target, Progress())
                    found = digest(target.read_bytes())
                    target.unlink()
                    yield volume.name, session.clear.session.hex(), found

    def compare(self) -> None:
        """Every session is what it was."""
        for name, session, found in self.images():
            known = self.truth.get((self.label, session))
            if known not in (None, found) or (known is None and found not in self.tried[name]):
                self.fault(f"{name}: session {session} of {self.label} holds something else")

    def check(self) -> None:
        self.compare()
        self.run("scrub")
        self.run("verify", "--session", "all")

    def restore(self) -> None:
        name = self.rng.choice(list(self.volumes))
        self.run("restore", name, "--yes", expect=(0, 1))

    # Events

    def renamed(self) -> None:
        self.volumes["post/private"] = self.volumes.pop("mail/private")
        self.configure()

    def removed(self) -> None:
        self.image("post/private").unlink()
        del self.volumes["post/private"]
        self.configure()

    def regrown(self) -> None:
        self.volumes["mail/private"] = "mail-private.img"
        fill(self.image("mail/private"), 40 * GRAIN, 77)
        self.configure()

    def disk_kept(self) -> None:
        self.kept = self.folder / "old disk"
        shutil.copytree(self.disks["A"], self.kept)

    def disk_put_back(self) -> None:
        shutil.rmtree(self.disks["A"])
        self.kept.rename(self.disks["A"])

    def state_kept(self) -> None:
        self.kept = self.folder / "old state"
        shutil.copytree(self.site.state, self.kept)

    def state_put_back(self) -> None:
        shutil.rmtree(self.site.state)
        self.kept.rename(self.site.state)

    def catalog_lost(self) -> None:
        (self.disks["B"] / "catalog.sqlite").unlink()

    def clock_ahead(self) -> None:
        """For one backup the clock is a year ahead."""
        self.now += 365 * DAY
        self.disturb()
        self.back_up()
        self.now -= 365 * DAY

    def nothing(self) -> None:
        pass

    def events(self) -> dict[int, Callable[[], None]]:
        happen = [
            *(self.nothing, self.renamed, self.removed, self.regrown, self.disk_kept),
            *(self.disk_put_back, self.state_kept, self.state_put_back, self.catalog_lost),
            *(self.clock_ahead, self.nothing),
        ]
        return {DAYS * at // len(happen): event for at, event in enumerate(happen)}


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def test_a_long_life(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in folder_in_memory("longlife"):
        life = Life(folder, monkeypatch, capsys)
        live(life)
        assert not life.faults, "\n".join(life.faults)
        left_over(life)


def live(life: Life) -> None:
    events = life.events()
    for day in range(DAYS):
        life.now = BIRTH + day * DAY
        events.get(day, life.nothing)()
        for hour in HOURS:
            life.now = BIRTH + day * DAY + hour * HOUR + life.rng.randrange(600)
            life.disturb()
            if life.rng.random() < 0.3:
                life.monitor()
            if life.rng.random() < (0.04 if LONG else 0.15):
                life.killed()
            else:
                life.back_up()
        if day % (91 if LONG else 12) == 3:
            life.restore()
        if day % (30 if LONG else 11) == 5:
            life.check()
            if LONG:
                with life.capsys.disabled():
                    print(f"day {day}: {len(life.faults)} faults", flush=True)


def left_over(life: Life) -> None:
    """At the end all is whole, and nothing is there that nobody needs."""
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for days in (0, 7 if LONG else 2):  # both disks
        life.now += days * DAY
        life.back_up()
        life.check()
        life.monitor()
        disk = life.disks[life.label]
        with life.site.open(True, disk) as archive:
            prune(archive, [])
            needed = {
                row.tobytes()
                for name in references.files(archive)
                for ids in references.ids(archive, name)
                for row in ids
            } - {ZERO_ID}
            assert archive.catalog.count()[0] == len(needed)
        beside = [
            path.name
            for path in disk.rglob("*")
            if path.suffix not in (".pack", ".session") and path.stat().st_size
        ]
        files = {name for name in beside if "." in name}
        assert files <= {
            "archive.toml",
            "catalog.sqlite",
            "notes.json",
            "archive.lock",
            "archive.wanted",
            "notes.lock",
        }
        # A probe of a run that was killed goes once it is old by the disk's own clock.
        left = (disk / "locks").glob("*")
        assert [path for path in left if not path.name.startswith("probe-")] == []
    assert life.faults == []
    assert len(os.listdir("/proc/self/fd")) <= before and threading.active_count() <= threads
    for name in life.volumes:
        assert len(life.site.snapshots(name)) == 1
    held = {p.parent for p in (life.site.pool / ".sparsebak").rglob("*") if p.is_file()}
    assert held == {life.site.pool / ".sparsebak" / name for name in life.volumes}
    for path in (life.site.state / "volumes").rglob("*"):
        assert path.is_dir() or not path.name.endswith((".tmp", ".damaged"))

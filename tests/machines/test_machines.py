# SPDX-License-Identifier: GPL-2.0-or-later
"""Three machines on one archive elsewhere, each with a cache of its own: random steps against a
model.

Backups, prunes, scrubs and copies, two at once at times, killed at times, over a network that is
cut, with clocks that are hours off. A model knows what each session holds: nothing is lost, one
writes at a time, all machines see the same.
"""

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backup_vm.archive import pack_writer
from backup_vm.archive.storage import objects
from backup_vm.archive.storage.remote import RemoteStorage
from backup_vm.errors import Exit
from tests.children import Child, Outcome, Step, run
from tests.conftest import folder_in_memory
from tests.kit import GRAIN, PASSPHRASE, Site
from tests.remote.kit import Network, Server, s3_server, ssh_server

LONG = os.environ.get("SPARSEBAK_LONG") == "1"
STEPS = int(os.environ.get("SPARSEBAK_STEPS", "300" if LONG else "12"))
SEED = int(os.environ.get("SPARSEBAK_SEED", "1"))
VOLUMES = ("work/private", "other/private")
CHUNKS = 12
HOUR = 3600.0
SECONDS = 60.0
CUT = ("cannot be reached", "does not answer", "network", "connection", "the agent ended")
BY_OTHERS = ("in use", "removed by another machine")
CUT_CODES = {Exit.FAILED, Exit.INCOMPLETE, Exit.AGENT}


@dataclass
class Machine:
    """One machine: its way to the store, its cache, and how many seconds its clock is off."""

    name: str
    network: Network
    environ: dict[str, str]
    off: float = 0.0

    def start(self, *steps: Step) -> Child:
        def set_clock() -> None:
            real, off = time.time, self.off
            time.time = lambda: real() + off  # type: ignore[assignment]

        return Child(steps, self.environ, before=set_clock, memory=0)

    def run(self, *words: str) -> Outcome:
        (outcome,) = self.start(words).outcomes(SECONDS)
        return outcome


@dataclass
class World:
    """All of it. ``tried``: contents of each volume that a backup may have stored; ``known``: what
    a session was seen to be.
    """

    site: Site
    machines: list[Machine]
    rng: random.Random
    tried: dict[str, set[str]] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    may_go: bool = False
    """Whether anything was pruned since all sessions were last looked at."""
    faults: list[str] = field(default_factory=list)
    step: int = 0
    last: str = ""

    def fault(self, text: str) -> None:
        self.faults.append(f"step {self.step}: {text}")

    def disturb(self) -> None:
        for name in VOLUMES:
            with open(self.site.image(name), "r+b") as file:
                file.seek(self.rng.randrange(CHUNKS - 3) * GRAIN)
                file.write(self.rng.randbytes(self.rng.randrange(1, 3) * GRAIN))
            contents = self.site.contents(name)
            self.tried.setdefault(name, set()).add(_digest(contents))

    @property
    def key(self) -> tuple[str, str]:
        return ("--passphrase-file", str(self.site.root / "pw"))

    def judge(self, machine: Machine, outcome: Outcome, *excuses: str) -> bool:
        """Note what should not have happened; whether it was done."""
        if outcome.fault:
            self.fault(f"{machine.name}: {outcome.what}: {outcome.fault}")
        elif outcome.code == Exit.LOCKED and not any(text in outcome.err for text in BY_OTHERS):
            self.fault(f"{machine.name}: {outcome.what}: locked, by whom? {outcome.err.strip()}")
        elif outcome.code not in (0, Exit.LOCKED):
            excused = outcome.code in CUT_CODES and any(text in outcome.err for text in excuses)
            if not excused:
                text = outcome.err.strip()[-400:]
                self.fault(f"{machine.name}: {outcome.what}: exit code {outcome.code}: {text}")
        return outcome.code == 0

    def words(self) -> tuple[str, ...]:
        """A command at random."""
        kind = self.rng.choice(["backup"] * 6 + ["prune"] * 3 + ["scrub", "copy", "verify", "tag"])
        if kind == "prune":
            self.may_go = True
            return (
                "prune",
                "--keep-last",
                str(self.rng.randrange(1, 4)),
                "--min-age",
                "0d",
                "--yes",
            )
        if kind == "copy":
            return ("copy", "--init", str(self.site.root / "copy"))
        return {
            "backup": ("backup", "--ignore-free-space"),
            "scrub": ("scrub",),
            "verify": ("verify", *self.key),
            "tag": ("tag", "work", "--session", "latest", "--add", "t"),
        }[kind]

    def seen_by(self, machine: Machine) -> dict[str, list[str]]:
        outcome = machine.run("list", "--json", *self.key)
        if not self.judge(machine, outcome):
            return {}
        return {
            f"{v['qube']}/{v['volume']}": [s["session"] for s in v["sessions"]]
            for v in json.loads(outcome.out)["volumes"]
        }

    def look(self) -> None:
        """All machines see the same, and every session is what it was."""
        views = [self.seen_by(machine) for machine in self.machines]
        if any(view != views[0] for view in views):
            self.fault(f"they see different sessions: {views}")
        wanted = [f"{name} {s}" for name, sessions in views[0].items() for s in sessions]
        for one in wanted if LONG else self.rng.sample(wanted, min(3, len(wanted))):
            name, session = one.split()
            machine, out = self.rng.choice(self.machines), self.site.root / "out.img"
            got = machine.run("assemble", name, "--session", session, "-o", str(out), *self.key)
            if self.judge(machine, got):
                found = _digest(out.read_bytes())
                if self.known.setdefault(one, found) != found:
                    self.fault(f"{one} has other contents than before")
                if found not in self.tried[name]:
                    self.fault(f"{one} has contents that the volume never had")
            out.unlink(missing_ok=True)
        lost = set(self.known) - set(wanted)
        if lost and not self.may_go:
            self.fault(f"gone: {sorted(lost)}")
        for one in lost:
            del self.known[one]
        self.may_go = False

    def _noted(self, started: float, what: str) -> None:
        if os.environ.get("SPARSEBAK_TIMES"):
            with open(os.environ["SPARSEBAK_TIMES"], "a") as file:
                file.write(f"{self.step} {what} {time.monotonic() - started:.2f}\n")

    def take_turns(self) -> None:
        """One step: a command, or two at once; cut off or killed at times."""
        rng = self.rng
        self.disturb()
        one = rng.choice(self.machines)
        trouble = rng.choice(["", "", "cut", "kill", "two", "two", "clock"])
        self.last = f"{one.name} {trouble}"
        if trouble == "clock":
            one.off = rng.choice([-26, -9, -1, 0, 1, 5, 9, 26]) * HOUR
        if trouble == "cut":
            one.network.fail_after = rng.randrange(300_000)
            cut = one.network.cut

            def and_stay_down() -> None:
                one.network.down = True
                cut()

            one.network.cut = and_stay_down  # type: ignore[method-assign]
            outcome = one.run(*self.words())
            one.network.cut = cut  # type: ignore[method-assign]
            one.network.mend()
            self.judge(one, outcome, *CUT)
            return
        first = one.start(self.words())
        if trouble == "kill":
            time.sleep(rng.uniform(0, 0.6))
            first.kill()
            return
        running = [(one, first)]
        if trouble == "two":
            other = rng.choice([m for m in self.machines if m is not one])
            time.sleep(rng.uniform(0, 0.3))
            running.append((other, other.start(self.words())))
        for machine, child in running:
            for outcome in child.outcomes(SECONDS):
                self.judge(machine, outcome, "busy", "is being extracted")

    def end(self) -> None:
        """A backup from each machine is done, and what each of them reads is whole."""
        for machine in self.machines:
            machine.off = 0.0
            self.disturb()
            done = machine.run("backup", "--ignore-free-space")
            if not self.judge(machine, done):
                self.fault(f"{machine.name}: the backup at the end: {done}")
            out = self.site.root / "out.img"
            for name in VOLUMES:
                self.judge(machine, machine.run("assemble", name, "-o", str(out), *self.key))
                if not out.exists() or out.read_bytes() != self.site.contents(name):
                    self.fault(f"{machine.name}: a change of {name} was missed")
                out.unlink(missing_ok=True)
        self.look()
        for machine in self.machines if LONG else [self.rng.choice(self.machines)]:
            self.judge(machine, machine.run("verify", "--session", "all", *self.key))
            self.judge(machine, machine.run("scrub"))
            self.judge(machine, machine.run("copy", "--init", str(self.site.root / "copy")))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@pytest.fixture(params=["sftp", "s3"] if LONG else ["sftp"])
def store_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with (ssh_server if request.param == "sftp" else s3_server)(tmp_path) as server:
        yield server


def test_three_machines(store_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "DELAYS", (0.05, 0.1, 0.1))
    monkeypatch.setattr(RemoteStorage, "pack_size", 4 * GRAIN)
    monkeypatch.setattr(pack_writer, "RECORD_SECONDS", 0.1)
    for name, value in store_server.environment().items():
        monkeypatch.setenv(name, value)
    for folder in folder_in_memory("machines"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache-0"))
        world = made(folder, store_server)
        try:
            for world.step in range(1, STEPS + 1):
                begun = time.monotonic()
                world.take_turns()
                world._noted(begun, world.last)
                if world.step % 5 == 0:
                    begun = time.monotonic()
                    world.look()
                    world._noted(begun, "look")
            begun = time.monotonic()
            world.end()
            world._noted(begun, "end")
        finally:
            for machine in world.machines:
                machine.network.close()
        assert not world.faults, "\n".join(world.faults)


def made(folder: Path, server: Server) -> World:
    site, rng = Site(folder / "site", volumes=VOLUMES), random.Random(SEED)
    (site.root / "pw").write_bytes(PASSPHRASE)
    for name in VOLUMES:
        site.image(name).write_bytes(rng.randbytes(CHUNKS * GRAIN))
    url = server.url("three")

    # in a child: what the S3 library begins in this process is not there in those forked from it
    def add() -> None:
        site.add_archive("three", url)  # type: ignore[arg-type]

    (added,) = run([add], server.environment(), SECONDS, memory=0)
    assert added.code == 0, added
    machines = []
    for number in range(3):
        network = Network(server)
        environ = server.environment(network.port) | {
            "XDG_CACHE_HOME": str(folder / f"cache-{number}"),
            "SPARSEBAK_ARCHIVE": network.url("three"),
            "SPARSEBAK_AGENT": f"local:{site.config}",
        }
        machines.append(Machine("ABC"[number], network, environ))
    return World(site, machines, rng)

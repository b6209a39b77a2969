# SPDX-License-Identifier: GPL-2.0-or-later
"""Three machines on one archive, each with a cache of its own where that is elsewhere: random steps
against a model.

Backups, prunes, scrubs and copies, two at once at times, killed at times, over a network that is
cut, with clocks that are hours off; and machines that are apart: in the middle of a run one stands
still, or nothing of its network passes, until another one has taken its lease over, and then all
that was on its way arrives. No machine sees whether a process of another one runs. A model knows
what each session holds: nothing is lost, one writes at a time, all machines see the same.
"""

import hashlib
import json
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backup_vm.archive import lease as leases
from backup_vm.archive import lease_files, pack_writer
from backup_vm.archive.storage import objects
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.archive.storage.remote import RemoteStorage
from backup_vm.errors import Exit
from tests.children import Outcome, run
from tests.kit import GRAIN, PASSPHRASE, Site
from tests.machines.machine import SECONDS, Machine
from tests.machines.stages import Coverage
from tests.remote.kit import Network, Server

LONG = os.environ.get("SPARSEBAK_LONG") == "1"
STEPS = int(os.environ.get("SPARSEBAK_STEPS", "300" if LONG else "12"))
SEED = int(os.environ.get("SPARSEBAK_SEED", "1"))
VOLUMES = ("work/private", "other/private")
KINDS = ("backup",) * 6 + ("prune",) * 3 + ("scrub", "copy", "verify", "tag")
TROUBLES = ("", "", "cut", "kill", "kill", "two", "two", "clock")
CHUNKS = 12
HOUR = 3600.0
STALE = 4.0
"""Seconds after which a lease is free: times in a store may be whole ones."""
CUT = ("cannot be reached", "does not answer", "network", "connection", "the agent ended")
BUSY = ("busy", "is being extracted")
BY_OTHERS = ("in use", "removed by another machine", "is lost")
CUT_CODES = {Exit.FAILED, Exit.INCOMPLETE, Exit.AGENT}


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
    coverage: Coverage = field(default_factory=Coverage)
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

    def words(self, kind: str = "") -> tuple[str, ...]:
        """A command, one at random where none is named."""
        kind = kind or self.rng.choice(KINDS)
        if kind == "prune":
            self.may_go = True
            return (
                "prune",
                "--keep-last",
                str(self.rng.randrange(1, 4)),
                "--min-age",
                "0d",
                "--max-removed",
                "100%",
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
            f"{v['qube']}/{v['volume']}": [s["id"] for s in v["sessions"]]
            for v in json.loads(outcome.out)["volumes"]
        }

    def look(self) -> None:
        """All machines see the same, and every session is what it was."""
        # By their ids: two clocks that are off by hours give two sessions one time.
        views = [self.seen_by(machine) for machine in self.machines]
        if any(view != views[0] for view in views):
            self.fault(f"they see different sessions: {views}")
        wanted = [f"{name} {s}" for name, sessions in views[0].items() for s in sessions]
        if LONG:  # each is what dom0 sealed: one command, where each assembled is one more
            prover = self.rng.choice(self.machines)
            self.judge(prover, prover.run("verify", "--session", "all", *self.key))
        for one in self.rng.sample(wanted, min(3, len(wanted))):
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

    def noted(self, started: float, what: str) -> None:
        if os.environ.get("SPARSEBAK_TIMES"):
            with open(os.environ["SPARSEBAK_TIMES"], "a") as file:
                file.write(f"{self.step} {what} {time.monotonic() - started:.2f}\n")

    def take_turns(self, trouble: str = "") -> None:
        """One step: a command, or two at once; cut off, killed or apart at times."""
        rng = self.rng
        self.disturb()
        one = rng.choice(self.machines)
        trouble = trouble or rng.choice(TROUBLES)
        if trouble == "cut" and one.network is None:
            trouble = ""
        self.last = f"{one.name} {trouble}"
        self.coverage.drawn[trouble or "none"] += 1
        if trouble == "apart":
            self.be_apart(one)
            return
        if trouble == "clock":
            one.off = rng.choice([-26, -9, -1, 0, 1, 5, 9, 26]) * HOUR
        self.coverage.drawn[f"clock off by {one.off / HOUR:.0f} h"] += 1
        if trouble == "cut" and one.network is not None:
            self.cut_off(one, one.network)
            return
        if trouble == "kill":
            self.kill(one)
            return
        running = [(one, one.start(self.words()))]
        if trouble == "two":
            other = rng.choice([m for m in self.machines if m is not one])
            time.sleep(rng.uniform(0, 0.3))
            running.append((other, other.start(self.words())))
        for machine, child in running:
            self.judge(machine, machine.outcome(child), *BUSY)

    def kill(self, one: Machine) -> None:
        """A command that dies: at any moment, or at a stage at which few have died."""
        death = self.coverage.death(self.rng, KINDS) if self.rng.random() < 0.7 else None
        if death is None:
            child = one.start(self.words())
            time.sleep(self.rng.uniform(0, 0.6))
            child.kill()
            one.troubled("kill")
            one.coverage.add(one.stages.come_to())
            return
        until = time.monotonic() + 2 * STALE
        while True:
            child = one.start(self.words(death.command), death)
            (outcome,) = child.outcomes(SECONDS)
            if outcome.code == -signal.SIGKILL:
                one.troubled("kill")
            else:  # it did not come so far
                self.judge(one, outcome, *BUSY)
            one.coverage.add(one.stages.come_to())
            if outcome.code != Exit.LOCKED or time.monotonic() > until:
                break
            time.sleep(0.3)

    def cut_off(self, one: Machine, network: Network) -> None:
        """A command, and somewhere in it the end of the network."""
        network.fail_after = self.rng.randrange(300_000)
        cut = network.cut

        def and_stay_down() -> None:
            if not network.down:
                one.troubled("cut")
            network.down = True
            cut()

        network.cut = and_stay_down  # type: ignore[method-assign]
        child = one.start(self.words())
        (outcome,) = child.outcomes(SECONDS)
        network.cut = cut  # type: ignore[method-assign]
        network.mend()
        one.coverage.add(one.stages.come_to())
        self.judge(one, outcome, *CUT)

    def be_apart(self, one: Machine) -> None:
        """A command that stands still somewhere, or whose network does, until another machine has
        done something in the meantime.
        """
        network = one.network if self.rng.random() < 0.7 else None
        if network is not None:
            network.late, network.stall_after = True, self.rng.randrange(300_000)
        first = one.start(self.words())
        if network is not None:
            network.stalled.wait(2.0)
        else:
            time.sleep(self.rng.uniform(0, 0.6))
            os.kill(first.pid, signal.SIGSTOP)
        one.troubled("apart")
        other = self.rng.choice([m for m in self.machines if m is not one])
        if one.network is None:  # flock keeps the others away for as long as it takes
            self.judge(other, other.run(*self.words()), *BUSY)
        else:
            self.patiently(other, *BUSY)
        if network is not None:
            network.mend()
        else:
            os.kill(first.pid, signal.SIGCONT)
        self.judge(one, one.outcome(first), *BUSY, *CUT)

    def patiently(self, machine: Machine, *excuses: str) -> bool:
        """Back up, or prune, as soon as no lease keeps this machine away; whether it did."""
        words = self.words() if excuses else ("backup", "--ignore-free-space")
        until = time.monotonic() + 5 * STALE
        while True:
            outcome = machine.run(*words)
            if outcome.code != Exit.LOCKED or time.monotonic() > until:
                break
            time.sleep(0.3)
        if outcome.code == Exit.LOCKED:
            self.fault(f"{machine.name}: kept away for long: {outcome.err.strip()}")
        return self.judge(machine, outcome, *excuses)

    def end(self) -> None:
        """A backup from each machine is done, and what each of them reads is whole."""
        for machine in self.machines:
            machine.off = 0.0
            self.disturb()
            if not self.patiently(machine):
                self.fault(f"{machine.name}: the backup at the end")
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


def made(folder: Path, server: Server) -> World:
    """Three machines, and an archive with a session of each volume."""
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
    machines, coverage = [], Coverage()
    for number in range(3):
        network = Network(server) if server.kind != "local" else None
        environ = server.environment(network.port if network else 0) | {
            "XDG_CACHE_HOME": str(folder / f"cache-{number}"),
            "SPARSEBAK_ARCHIVE": network.url("three") if network else url,
            "SPARSEBAK_AGENT": f"local:{site.config}",
        }
        machines.append(Machine("ABC"[number], network, environ, coverage))
    world = World(site, machines, rng, coverage=coverage)
    world.disturb()
    world.patiently(machines[0])
    return world


def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small packs; what takes minutes takes seconds."""
    monkeypatch.setattr(objects, "DELAYS", (0.05, 0.1, 0.1))
    for kind in (RemoteStorage, LocalStorage):
        monkeypatch.setattr(kind, "pack_size", 4 * GRAIN)
    monkeypatch.setattr(pack_writer, "RECORD_SECONDS", 0.1)
    monkeypatch.setattr(lease_files, "STALE", STALE)
    monkeypatch.setattr(lease_files, "_BEGINNING", STALE / 2)
    monkeypatch.setattr(leases, "_HALF", STALE / 2)
    monkeypatch.setattr(leases, "RENEWAL", 0.3)
    monkeypatch.setattr(leases, "_FIRST", 0.3)
    monkeypatch.setattr(leases, "_RETRY", 0.1)

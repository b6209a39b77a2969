# SPDX-License-Identifier: GPL-2.0-or-later
"""Two of everything at once on one archive and one agent, one of them killed at times: afterwards
all is whole.
"""

import itertools
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backup_vm.errors import Exit
from dom0_agent.admin.monitoring import monitor
from dom0_agent.catalog import open_catalog
from dom0_agent.config import load
from dom0_agent.keyring import Keyring
from tests.children import Child, Outcome, Step
from tests.conftest import folder_in_memory
from tests.kit import GRAIN, PASSPHRASE, Site
from wire.status import Refused

LONG = os.environ.get("SPARSEBAK_LONG") == "1"
ROUNDS = int(os.environ.get("SPARSEBAK_ROUNDS", "4"))
PAIRS = 16
"""Pairs in a short run, of the commands and of the calls each."""
VOLUMES = ("a/private", "b/private")
CHUNKS = 24


class Stage:
    """An archive with a copy and an exported session, as every pair finds it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.site = Site(folder / "site", volumes=VOLUMES)
        (folder / "pw").write_bytes(PASSPHRASE)
        rng = random.Random(1)
        for name in VOLUMES:
            self.site.image(name).write_bytes(rng.randbytes(CHUNKS * GRAIN))
        for _ in range(3):
            self.site.backup()
            disturb(self.site, rng)
        self._do(self.site, ("copy", str(self.site.root / "copy")))
        self._do(self.site, words(self.site)["export"])
        (folder / "site/out.sbx").rename(folder / "site/in.sbx")
        self._do(self.site, ("prune", "b/private", "--session", "latest", "--yes"))
        self._do(self.site, ("backup", "--ignore-free-space"))
        self.kept = {name: self.site.images(name) for name in VOLUMES}
        disturb(self.site, rng)

    def _do(self, site: Site, step: Step) -> None:
        for outcome in Child([step], environ(site)).outcomes(60):
            assert outcome.code == 0, outcome

    def copy(self, folder: Path) -> Site:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root, folder)
        return Site(folder / "site", volumes=VOLUMES, make=False)


def environ(site: Site) -> dict[str, str]:
    return {
        "SPARSEBAK_ARCHIVE": str(site.archive),
        "SPARSEBAK_AGENT": f"local:{site.config}",
        "HOME": str(site.root),
        "XDG_CACHE_HOME": str(site.root / "cache"),
    }


def disturb(site: Site, rng: random.Random) -> None:
    for name in VOLUMES:
        with open(site.image(name), "r+b") as file:
            file.seek(rng.randrange(CHUNKS - 6) * GRAIN)
            file.write(rng.randbytes(5 * GRAIN))


def words(site: Site, oldest: str = "latest") -> dict[str, tuple[str, ...]]:
    """Commands by name."""
    key, root = ("--passphrase-file", str(site.root.parent / "pw")), site.root
    return {
        "list": ("list", *key),
        "status": ("status", *key),
        "report": ("report", "-o", str(root / "report.html")),
        "diff": ("diff", "a/private", oldest, "latest", *key),
        "verify": ("verify", "--session", "all", *key),
        "verify in dom0": ("verify",),
        "assemble": ("assemble", "a/private", "-o", str(root / f"{os.urandom(4).hex()}.img"), *key),
        "export": ("export", "b/private", "-o", str(root / "out.sbx"), *key),
        "import": ("import", str(root / "in.sbx")),
        "backup": ("backup", "--ignore-free-space"),
        "backup with a tag": ("backup", "--ignore-free-space", "--tag", "one"),
        "prune": ("prune", "--keep-last", "1", "--min-age", "0d", "--yes"),
        "scrub": ("scrub",),
        "tag": ("tag", "a", "--session", "latest", "--add", "two"),
        "copy": ("copy", str(root / "copy")),
        "copy back": ("--archive", str(root / "copy"), "copy", str(site.archive)),
        "prune the copy": (
            "--archive",
            str(root / "copy"),
            "prune",
            "--keep-last",
            "1",
            "--min-age",
            "0d",
            "--yes",
        ),
        "restore": ("restore", "b/private", "--yes"),
        "unlock": ("unlock",),
        "doctor": ("doctor",),
    }


def calls(site: Site) -> dict[str, Callable[[], object]]:
    """Services of the agent on one volume, some of them left in the middle."""

    def snapshot(leave: int) -> None:
        with site.open() as archive:
            agent = site.agent(archive)
            newest = archive.sessions()
            (last,) = [
                series[-1]
                for series in newest.values()
                if series[-1].clear.volume_id == _id_of(site, "a/private")
            ]
            offer = agent.snapshot("a", "private", last.clear.session, last.clear.sequence, 0)
            if leave == 0:
                agent.abort("a", "private", offer.session)
                return
            with agent.extract("a", "private", offer.session, 0) as reply:
                for count, _ in enumerate(reply.frames()):
                    if count == leave:
                        break
            agent.close()

    return {
        "monitor": lambda: monitored(site),
        "backup": lambda: site.backup("a/private"),
        "both backed up": lambda: site.backup(),
        "begun and aborted": lambda: snapshot(0),
        "left after a frame": lambda: snapshot(1),
        "left after seven": lambda: snapshot(7),
        "restored": lambda: site.restore(-1, "a/private"),
        "listed": lambda: site.agent().list(),
        "committed": lambda: site.agent().commit("a", "private", bytes(16)),
    }


def monitored(site: Site) -> None:
    """Replace the base snapshots; what another call works on is left for the next time."""
    config = load(site.config)
    keyring = Keyring(config.state_dir)
    outcomes = list(monitor(config.state_dir, list(open_catalog(config).volumes()), keyring))
    assert not [one.error for one in outcomes if one.error and not one.busy]


def _id_of(site: Site, name: str) -> bytes:
    with site.open() as archive:
        return site.keys(archive).volume_id(*name.split("/"))


def accepted(name: str, outcome: Outcome) -> bool:
    """Done, or told that somebody else is at it."""
    if outcome.code == 0:
        return True
    if name == "doctor" and outcome.code == Exit.FAILED:  # it says that the archive is in use
        return True
    if name.startswith("import") and "already" in outcome.err:
        return True
    if outcome.code == Exit.LOCKED:
        return "in use" in outcome.err or "held by" in outcome.err
    return outcome.code in (Exit.AGENT, Exit.INCOMPLETE) and "busy" in outcome.err


def at_once(first: Child, second_step: Step, site: Site, rng: random.Random) -> list[Outcome]:
    """Start a second one a moment after the first, and kill one of them now and then."""
    time.sleep(rng.choice([0, 0, 0.01, 0.03, 0.06, 0.1, 0.2]))
    second = Child([second_step], environ(site))
    killed = rng.choice([None, None, first, second])
    if killed is not None:
        time.sleep(rng.uniform(0, 0.25))
        killed.kill()
    return [o for child in (first, second) if child is not killed for o in child.outcomes(60)]


def whole(site: Site, kept: dict[str, dict[str, bytes]], pruned: bool, restored: bool) -> list[str]:
    """What is wrong with an archive and the agent's state, once all runs have ended."""
    faults = []
    site.backup()
    for name in VOLUMES:
        now = site.images(name)
        for session, contents in kept[name].items():
            if session in now and now[session] != contents:
                faults.append(f"{session} of {name} has other contents")
            if session not in now and not pruned:
                faults.append(f"{session} of {name} is gone")
        if list(now.values())[-1] != site.contents(name):
            faults.append(f"a change of {name} was missed")
        if len(site.snapshots(name)) != 1:
            faults.append(f"snapshots left of {name}: {site.snapshots(name)}")
    faults += map(str, site.scrubbed())
    left = [
        str(path.relative_to(site.root))
        for path in (*site.archive.rglob("*"), *site.state.rglob("*"))
        if path.name.endswith((".tmp", ".partial", ".unfinished")) or path.parent.name == "locks"
    ]
    return faults + ([f"left behind: {left}"] if left else [])


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    for folder in folder_in_memory("together"):
        yield Stage(folder / "stage")


def sample(pairs: list[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    return pairs * ROUNDS if LONG else random.Random(seed).sample(pairs, PAIRS)


def pair_faults(
    site: Site, pair: tuple[str, str], steps: tuple[Step, Step], stage: Stage, seed: str
) -> list[str]:
    rng = random.Random(seed)
    found = at_once(Child(steps[:1], environ(site)), steps[1], site, rng)
    faults = [f"{o.what}: {o.fault}" for o in found if o.fault and not _refused(o)]
    faults += [
        f"{o.what}: exit code {o.code}: {o.err.strip()[-300:]}"
        for o in found
        if not o.fault and not accepted(o.what, o)
    ]
    try:
        faults += whole(
            site, stage.kept, any("prune" in name for name in pair), "restore" in str(pair)
        )
    except Exception as error:  # noqa: BLE001
        faults.append(f"afterwards: {type(error).__name__}: {error}")
    return [f"{' + '.join(pair)} ({seed}): {fault}" for fault in faults]


def _refused(outcome: Outcome) -> bool:
    """A call's refusal, which a test's own function does not catch."""
    return any(
        text in outcome.err
        for text in ("busy with another", "RefusedError", "LockedError", Refused.__name__ + ":")
    )


def test_two_commands(stage: Stage, quick_folder: Path) -> None:
    names, faults = list(words(stage.site)), []
    writing = {"list", "status", "report", "diff", "doctor"}
    pairs = [
        pair
        for pair in itertools.combinations_with_replacement(names, 2)
        if not set(pair) <= writing
    ]
    for number, pair in enumerate(sample(pairs, 7)):
        site = stage.copy(quick_folder / "case")
        # Each its own words: two of the same are not to write the same file.
        oldest = min(stage.kept["a/private"])
        first, second = (words(site, oldest)[pair[turn % 2]] for turn in (number, number + 1))
        faults += pair_faults(site, pair, (first, second), stage, f"{number}")
    assert not faults, "\n".join(faults)


def test_two_calls(stage: Stage, quick_folder: Path) -> None:
    names, faults = list(calls(stage.site)), []
    pairs = list(itertools.combinations_with_replacement(names, 2))
    for number, pair in enumerate(sample(pairs, 8)):
        site = stage.copy(quick_folder / "case")
        known = calls(site)
        steps = known[pair[number % 2]], known[pair[1 - number % 2]]
        faults += pair_faults(site, pair, steps, stage, f"{number}")
    assert not faults, "\n".join(faults)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What is run on a file system that fails: every command that touches archive, volumes or dom0's
state, and every call.
"""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from backup_vm.agent.client import Agent
from backup_vm.archive.sessions import columns
from dom0_agent.tracking.state import VolumeState
from tests.faults.harness import VOLUMES, Place, run
from tests.faults.promises import (
    ARCHIVE,
    COPY,
    POOL,
    STATE,
    Step,
    assembled,
    backed_up,
    backed_up_after,
    backed_up_to,
    can_be_taken_over,
    copied,
    deleted,
    exported,
    first_gone,
    gone,
    imported,
    known_in_dom0,
    no_lease,
    reported,
    restored,
    tagged,
    unknown_in_dom0,
)
from tests.kit import GRAIN
from wire.messages import Request

DIED = 86
SIZE = 12 * GRAIN + 777
UNTOUCHED = 10
"""A chunk that no change reaches."""


def nothing(place: Place) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Scenario:
    """``words`` are those of ``sparsebak``, or of ``sparsebak-agent``, or ``action`` is run in
    their stead.

    ``where`` is what fails, below the copy of the site; ``prepare`` what is done before;
    ``promised`` raises AssertionError unless all is there that an exit code of 0 promises.
    ``doomed`` are names of sessions that may go, ``code`` the exit code without a fault, ``again``
    those of the same command afterwards; ``once``: it is not run again. ``changes_volume``: the
    volume is the old one or the restored one. ``damaged``: what was stored before is whole only
    after a backup. ``shows``: it has done what it promises when it has shown all that it shows
    without a fault.
    """

    name: str
    words: tuple[str, ...] = ()
    where: str = ARCHIVE
    prepare: Step = nothing
    promised: Step = nothing
    doomed: tuple[str, ...] = ()
    code: int = 0
    again: tuple[int, ...] = (0,)
    archive: str = ARCHIVE
    agent: bool = False
    action: Callable[[Place], int] | None = None
    changes_volume: bool = False
    once: bool = False
    damaged: bool = False
    shows: bool = False

    def started(self, place: Place) -> int:
        """Run it in this process."""
        if self.action is not None:
            return self.action(place)
        if self.agent:
            return place.agent_called(*self.words)
        return place.called(*self.words, archive=self.archive)


# --- what comes before


def cut_off(place: Place) -> None:
    """A backup that died after some packs: dom0 has a pending session, the archive a
    partial one.
    """
    from backup_vm.terminal.progress import Progress

    class CutOff(Progress):
        left = 7

        def advance(self, size: int) -> None:
            self.left -= 1
            if self.left == 0:
                os._exit(DIED)

    def die() -> int:
        from backup_vm.jobs.backup import BackupRun

        with place.site.open(True) as archive:
            agent = place.site.agent(archive)
            BackupRun(archive, agent, CutOff()).run(agent.list())
        return 0

    assert run(die).code == DIED
    note_pending(place)


def died_at(method: str) -> Step:
    """A backup that died where it was to make this call."""

    def prepare(place: Place) -> None:
        def die() -> int:
            setattr(Agent, method, lambda *arguments, **named: os._exit(DIED))
            return place.called("backup")

        outcome = run(die)
        assert outcome.code == DIED, outcome
        note_pending(place)

    return prepare


def without_catalog(place: Place) -> None:
    (place.root / ARCHIVE / "catalog.sqlite").unlink()


def without_copy(place: Place) -> None:
    shutil.rmtree(place.root / COPY)


def with_a_damaged_chunk(place: Place) -> None:
    """A chunk that is in the volume still, and so can be had again."""
    site = place.site
    with site.open() as archive:
        series, *_ = archive.sessions().values()
        ((_, ids),) = columns(archive.storage, series[0]).between(UNTOUCHED, UNTOUCHED + 1)
        (chunk,) = archive.catalog.places([ids[0].tobytes()]).values()
        pack, at = chunk.pack, chunk.offset + 40
    with open(site.archive / pack, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def with_a_lease(place: Place) -> None:
    """The lease of a run that was killed."""

    def die() -> int:
        with place.site.open(True):
            os._exit(DIED)

    assert run(die).code == DIED


# --- calls


def note_pending(place: Place) -> None:
    """Write down what dom0 has of work/private that is neither committed nor aborted."""
    state = VolumeState(place.site.state, "work", "private").load()
    (session,) = [
        progress.pending.session for progress in state.follows.values() if progress.pending
    ]
    (place.root / "pending").write_text(session)


def pending(place: Place) -> bytes:
    """Its session."""
    return bytes.fromhex((place.root / "pending").read_text())


def asked(place: Place, call: Callable[[Agent], object]) -> int:
    """Make a call for the archive."""
    with open(place.site.root / "archive-id", "rb") as file:
        archive = file.read()
    agent = place.site.agent()
    agent.use(archive, GRAIN)
    try:
        call(agent)
    finally:
        agent.close()
    return 0


def enroll(place: Place) -> int:
    return asked(place, lambda agent: agent.enroll("second"))


def list_volumes(place: Place) -> int:
    return asked(place, lambda agent: agent.list())


def snapshot(place: Place) -> int:
    def call(agent: Agent) -> None:
        entry = next(entry for entry in agent.list() if entry.qube == "work")
        agent.snapshot("work", "private", entry.session, 3, 0)

    return asked(place, call)


def extract(place: Place) -> int:
    session = pending(place)

    def call(agent: Agent) -> None:
        with agent.extract("work", "private", session, 0) as reply:
            for _ in reply.frames():
                pass

    return asked(place, call)


def commit(place: Place) -> int:
    session = pending(place)
    return asked(place, lambda agent: agent.commit("work", "private", session))


def abort(place: Place) -> int:
    session = pending(place)
    return asked(place, lambda agent: agent.abort("work", "private", session))


def monitor(place: Place) -> int:
    def call(agent: Agent) -> None:
        with agent._call("Monitor", Request(archive=agent._archive), "work", "private") as reply:
            reply.only()

    return asked(place, call)


def write_here_and_there(place: Place, seed: int) -> None:
    """Change both volumes."""
    rng = random.Random(seed)
    for name in VOLUMES:
        with open(place.site.image(name), "r+b") as file:
            for _ in range(3):
                file.seek(rng.randrange(8) * GRAIN)
                file.write(rng.randbytes(GRAIN + 5))


_KEYED = ("--passphrase-file", "{passphrase}")
_FIRST = ("work/private", "--session", "{first}")
SCENARIOS = (
    Scenario("init", ("init", "{root}/fresh", "--label", "second"), where="fresh*", again=(0, 1),
              promised=lambda place: backed_up_after(place, "fresh")),
    Scenario("backup, first", ("backup",), where="empty", archive="empty",
             promised=backed_up_to("empty")),
    Scenario("backup", ("backup",), promised=backed_up),
    Scenario("backup, tagged", ("backup", "--tag", "kept-for-tests"),
             promised=lambda place: (backed_up(place), tagged(place))),
    Scenario("backup, resumed", ("backup",), prepare=cut_off, promised=backed_up),
    Scenario("backup without a catalog", ("backup",), prepare=without_catalog,
             promised=backed_up),
    Scenario("backup, dom0", ("backup",), where=STATE, promised=backed_up),
    Scenario("backup, resumed, dom0", ("backup",), where=STATE, prepare=cut_off,
             promised=backed_up),
    Scenario("backup, pool", ("backup",), where=POOL, promised=backed_up),
    Scenario("prune", ("prune", "--keep-last", "1", "--min-age", "0d"),
             doomed=("first", "second"), promised=gone),
    Scenario("prune one session", ("prune", *_FIRST), doomed=("first",), promised=first_gone,
             again=(0, 1)),
    Scenario("delete", ("delete", "other/private", "--yes"), promised=deleted,
             doomed=("other/private",), again=(0, 1)),
    Scenario("scrub", ("scrub",)),
    Scenario("scrub without a catalog", ("scrub",), prepare=without_catalog),
    Scenario(
        "scrub, damage", ("scrub",), prepare=with_a_damaged_chunk, code=4, again=(4,), damaged=True
    ),
    Scenario("backup that heals", ("backup",), prepare=lambda place: (
        with_a_damaged_chunk(place), place.command("scrub")), promised=backed_up, damaged=True),
    Scenario("copy", ("copy", "{root}/copy"), where=COPY, promised=copied),
    Scenario("copy, first", ("copy", "{root}/copy"), where="copy*", prepare=without_copy,
             promised=copied),
    Scenario("copy, its source", ("copy", "{root}/copy"), promised=copied),
    Scenario("import", ("import", "{root}/export.sbx"), where=COPY, archive=COPY,
             promised=imported, again=(0, 1)),
    Scenario("export", ("export", "work/private", "-o", "{root}/out.sbx", "--force", *_KEYED),
             where="out.sbx*", promised=exported),
    Scenario("export, its source",
             ("export", "work/private", "-o", "{root}/out.sbx", "--force", *_KEYED),
             promised=exported),
    Scenario("assemble", ("assemble", "work/private", "-o", "{root}/out.img", "--force", *_KEYED),
             where="out.img*", promised=assembled),
    Scenario("assemble, its source",
             ("assemble", "work/private", "-o", "{root}/out.img", "--force", *_KEYED),
             promised=assembled),
    Scenario("restore", ("restore", *_FIRST, "--yes"), where=POOL, promised=restored,
             changes_volume=True),
    Scenario("restore, dom0", ("restore", *_FIRST, "--yes"), where=STATE, promised=restored,
             changes_volume=True),
    Scenario("restore, its source", ("restore", *_FIRST, "--yes"), promised=restored,
             changes_volume=True),
    Scenario("tag", ("tag", "work/private", "--session", "latest", "--add", "kept-for-tests"),
             promised=tagged),
    Scenario("verify", ("verify", *_KEYED), shows=True),
    Scenario("verify, dom0", ("verify",), where=STATE, shows=True),
    Scenario("list", ("list",), shows=True),
    Scenario("list without a catalog", ("list",), prepare=without_catalog, shows=True),
    Scenario("status", ("status",), shows=True),
    Scenario("report", ("report", "-o", "{root}/out.html"), promised=reported),
    Scenario("report, its page", ("report", "-o", "{root}/out.html"), where="out.html*",
             promised=reported),
    Scenario("keys", ("keys", "-o", "{root}/out.keys"), promised=can_be_taken_over,
             again=(0, 1)),
    Scenario("keys, their file", ("keys", "-o", "{root}/out.keys"), where="out.keys*",
             promised=can_be_taken_over, again=(0, 1)),
    Scenario("keys --refresh", ("keys", "--refresh")),
    Scenario("unlock", ("unlock", "--yes"), prepare=with_a_lease, promised=no_lease),
    Scenario("Enroll", action=enroll, where=STATE),
    Scenario("List", action=list_volumes, where=STATE),
    Scenario("Snapshot", action=snapshot, where=STATE, once=True),
    Scenario("Snapshot, pool", action=snapshot, where=POOL, once=True),
    # With a state or a snapshot that cannot be read its session is lost; a backup begins another one.
    Scenario("Extract", action=extract, where=STATE, prepare=died_at("extract"), again=(0, 5)),
    Scenario("Extract, pool", action=extract, where=POOL, prepare=died_at("extract"), again=(0, 5)),
    Scenario("Commit", action=commit, where=STATE, prepare=died_at("ask_commit"), once=True),
    Scenario("Commit, pool", action=commit, where=POOL, prepare=died_at("ask_commit"), once=True),
    Scenario("Abort", action=abort, where=STATE, prepare=cut_off, once=True),
    Scenario("Abort, pool", action=abort, where=POOL, prepare=cut_off, once=True),
    Scenario("Monitor", action=monitor, where=STATE),
    Scenario("Monitor, pool", action=monitor, where=POOL),
    Scenario("agent monitor", ("monitor",), agent=True, where=STATE),
    Scenario("agent monitor, pool", ("monitor",), agent=True, where=POOL),
    Scenario("agent archive add",
             ("archive", "add", "third", "--caller", "backup-vm", *_KEYED), agent=True,
             where=STATE, promised=known_in_dom0("third"), again=(1,)),
    Scenario("agent archive remove", ("archive", "remove", "second", "--yes"), agent=True,
             where=STATE, promised=unknown_in_dom0("second"), again=(0, 1)),
    Scenario("agent keys import",
             ("keys", "import", "taken", "{root}/taken.keys", "--caller", "backup-vm", *_KEYED),
             agent=True, where=STATE, promised=known_in_dom0("taken"), again=(1,)),
    Scenario("agent keys add", ("keys", "add", "tests", *_KEYED), agent=True, where=STATE),
    Scenario("agent forget", ("forget", "other/private", "--yes"), agent=True, where=STATE,
             again=(0, 1)),
    Scenario("agent forget, pool", ("forget", "other/private", "--yes"), agent=True, where=POOL,
             again=(0, 1)),
)  # fmt: skip

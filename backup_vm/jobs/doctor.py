# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of the whole chain from this machine to dom0, each with what to do when it fails."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backup_vm.archive import holding, notes
from backup_vm.archive.archive import Archive
from backup_vm.archive.incomplete import incomplete, text
from backup_vm.archive.parameters import Parameters
from backup_vm.archive.storage import Storage
from backup_vm.errors import AgentError, DamagedError
from backup_vm.jobs.advice import chunk_size_for, chunk_size_text
from backup_vm.jobs.keep_rules import AHEAD, DAY
from backup_vm.quantities import days_text
from backup_vm.reporting.locks import ahead, lease_remedy, lease_rows, lease_text, silent
from backup_vm.reporting.view import TIMER, systemctl
from backup_vm.terminal.text import count_text, size_text, waiting_text
from common.text import session_name
from wire import DEFAULT_CHUNK_SIZE, NO_SESSION, VERSION
from wire.messages import VOLUME_GONE, VOLUME_PENDING, VolumeEntry
from wire.slots import KIND_RECOVERY

if TYPE_CHECKING:
    from backup_vm.agent.client import Agent

GOOD, WARN, BAD = "ok", "warn", "bad"
LATE_BACKUP, LATE_CHECK = 8 * DAY, 35 * DAY
DRILL_TIMER = "sparsebak-drill.timer"
LITTLE_ROOM = 0.05
"""Share of the disk below which room is called little."""


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, how it is, and what to do. ``work``: the command that does
    it, where one of this program alone does; ``topic``: what it is about, in one word.
    """

    state: str
    what: str
    remedy: str = ""
    work: str = ""
    topic: str = ""


def _good(what: str) -> Finding:
    return Finding(GOOD, what)


def _warn_unless(good: bool, what: str, remedy: str, work: str = "") -> Finding:
    return Finding(GOOD if good else WARN, what, remedy, work)


def about(topic: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings, with what they are about."""
    return (replace(finding, topic=topic) for finding in findings)


def of_archive(archive: Archive) -> Iterator[Finding]:
    """The archive itself, its disk, its key slots, and when it was last checked."""
    parameters, where = archive.parameters, archive.storage.describe()
    yield from about(
        "archive", [_good(f"archive {parameters.label} in {where}, {parameters.mode}")]
    )
    yield from about("disk", _of_disk(archive.storage))
    if parameters.mode == "sealed":
        yield from about("keys", [_of_slots(parameters)])
    yield from about("locks", _of_lock(archive))
    yield from about("leases", _of_leases(archive))
    yield from about("sessions", _of_sessions(archive))
    yield from about("scrub", [_of_scrub(archive.storage)])
    yield from about("drill", _of_drills(archive))


def _of_disk(storage: Storage) -> Iterator[Finding]:
    if storage.elsewhere and not storage.writable():  # of no disk that anybody could mount
        yield _good("it can only be read: it is the archive as it was")
        return
    if not storage.writable():
        yield Finding(
            BAD,
            "the disk is read-only for this user",
            "mount it for writing, or give the folder to this user",
        )
    free, capacity = storage.free(), storage.capacity()
    if free is None or capacity is None:
        yield Finding(
            WARN,
            "free space: not known here",
            "look at the disk yourself; neither a backup nor --until-free can",
        )
    else:
        yield _warn_unless(
            free >= LITTLE_ROOM * capacity,
            f"{size_text(free)} free of {size_text(capacity)}",
            "run: sparsebak prune --until-free 10%",
            "prune",
        )


def _of_lock(archive: Archive) -> Iterator[Finding]:
    held = holding.state(archive)
    if held is not None:
        until = session_name(held.until) if held.until else "an unknown time"
        yield _warn_unless(
            not held.late(time.time()),
            f"locked for {days_text(held.retention)}, as far as is known here until {until}",
            "run: sparsebak backup; it locks again what has less than half of that left",
        )
        for line in waiting_text(held.waiting, held.waiting_until):
            due = held.waiting_until < time.time()
            yield _warn_unless(not due, line.rstrip("."), "run: sparsebak prune", "prune")


def _of_leases(archive: Archive) -> Iterator[Finding]:
    rows, problems = lease_rows(archive)
    for problem in problems:
        yield Finding(WARN, problem, "see whether the store can be reached: sparsebak list")
    for row in rows:
        doubtful = silent(row) or ahead(row)
        yield _warn_unless(
            not doubtful,
            f"another run{' that may be over' if doubtful else ''} holds its lease:"
            f" {lease_text(row)}",
            lease_remedy(row),
        )


def _of_slots(parameters: Parameters) -> Finding:
    recovery = any(slot[:1] == bytes((KIND_RECOVERY,)) for slot in parameters.slots)
    slots = count_text(len(parameters.slots), "key slot")
    return _warn_unless(
        recovery and len(parameters.slots) > 1,
        f"{slots}, {'a recovery key among them' if recovery else 'no recovery key'}",
        f"in dom0: sparsebak-agent keys new-recovery {parameters.label}; then: sparsebak keys"
        " --refresh",
    )


def _of_sessions(archive: Archive) -> Iterator[Finding]:
    series = archive.sessions()
    for error in archive.damaged.values():
        yield Finding(BAD, str(error), "run: sparsebak scrub", "scrub")
    for line in archive.missing():
        remedy = "put it back from a copy, or run: sparsebak backup, which stores all of the volume"
        yield Finding(BAD, line, remedy, "backup")
    newest = max((sessions[-1].clear.time for sessions in series.values()), default=0)
    yield _age(
        "the newest session is of",
        newest,
        LATE_BACKUP,
        "run: sparsebak backup",
        "no session yet",
        "backup",
    )
    found = archive.looking.steady(
        lambda: incomplete(archive, archive.sessions()), lambda found: found.values()
    )
    for volume_id, sessions in series.items():
        compare = archive.catalog.marks.must_compare(volume_id)
        for line in text(f"volume {volume_id}", sessions, found):
            if compare:
                remedy = "run: sparsebak backup; it stores again what it can"
            else:
                remedy = (
                    "what they lack can be had from a second copy alone, if there is one: sparsebak"
                    " --archive COPY copy DIR, where DIR is this one; else remove them: sparsebak"
                    " prune --session S QUBE/VOLUME"
                )
            yield Finding(BAD, line, remedy, "backup" if compare else "")
        if compare:
            yield Finding(
                WARN,
                f"damage was found in volume {volume_id}",
                "run: sparsebak backup; it compares the volume and stores what is lacking",
                "backup",
            )


def _of_scrub(storage: Storage) -> Finding:
    try:
        scrubbed = notes.load(storage).scrubbed
    except DamagedError as error:
        return Finding(BAD, str(error), error.hint)
    remedy = "run: sparsebak scrub"
    if scrubbed is not None and not scrubbed.sound:
        when = session_name(scrubbed.time)
        return Finding(BAD, f"the last scrub, {when}, found damage", remedy, "scrub")
    when_run = scrubbed.time if scrubbed else 0
    return _age("the last scrub was", when_run, LATE_CHECK, remedy, "no scrub yet", "scrub")


def _of_drills(archive: Archive) -> Iterator[Finding]:
    try:
        found = notes.load(archive.storage).drills
    except DamagedError:  # which _of_scrub reports
        return
    drills = [check for volume, check in found.items() if volume in archive.sessions()]
    failed = [check for check in drills if not check.sound]
    for check in failed:
        when = session_name(check.time)
        yield Finding(
            BAD, f"the last drill of a volume, {when}, failed", "run: sparsebak drill", "drill"
        )
    last = max((check.time for check in drills), default=0)
    yield _age(
        "the last drill was",
        last,
        LATE_CHECK,
        f"run: sparsebak drill; by itself: systemctl enable --now {DRILL_TIMER}",
        "no drill yet: no restore was ever rehearsed",
        "drill",
    )


def _age(what: str, when: int, late: int, remedy: str, never: str, work: str) -> Finding:
    """``when``: Unix time, 0 for never; ``late``: seconds after which that is long ago."""
    if not when:
        return Finding(WARN, never, remedy, work)
    now, text = time.time(), f"{what} {session_name(when)}"
    if when > now + AHEAD:  # or it would count as a new one until then
        text += ", which is in the future: one of the two clocks is wrong"
        return Finding(WARN, text, f"set it (see: date; also in dom0); then {remedy}", work)
    return _warn_unless(now - when <= late, text, remedy, work)


def of_agent(agent: "Agent", archive: Archive) -> Iterator[Finding]:
    """Policy, the agent and its version, key slots on both sides, and the volumes."""
    try:
        entry, slots, version = agent.enroll(archive.parameters.label)
        listed = agent.list()
    except AgentError as error:
        yield Finding(BAD, str(error), error.hint)
        return
    yield _good("dom0's policy lets this qube ask, and the agent answers")
    yield _warn_unless(
        version == VERSION,
        f"the agent is version {version or 'unknown'}, this is {VERSION}",
        "install the same version on both sides",
    )
    if entry.archive != archive.parameters.archive:
        yield Finding(
            BAD,
            f"dom0 knows another archive as {entry.label}",
            "see in dom0: sparsebak-agent archive list",
        )
    elif tuple(slots) != archive.parameters.slots:
        yield Finding(
            WARN,
            "dom0 has other key slots than the archive",
            "run: sparsebak keys --refresh",
            "keys",
        )
    yield from _of_volumes(listed)
    yield from of_chunk_size(archive.parameters, sum(volume.size for volume in listed))


def of_chunk_size(parameters: Parameters, size: int) -> Iterator[Finding]:
    """Whether chunks suit volumes of so many bytes together."""
    advised = chunk_size_for(size)
    # less than the default is somebody's choice, until the default would not do either
    if advised > max(parameters.chunk_size, DEFAULT_CHUNK_SIZE):
        mine, better = map(chunk_size_text, (parameters.chunk_size, advised))
        yield Finding(
            WARN,
            f"chunks of {mine} for {size_text(size)} of volumes:"
            " the catalog becomes large and slow",
            f"a new archive can have chunks of {better} (--chunk-size, when dom0 adds it); or"
            " divide the qubes among several archives",
        )


_VOLUMES: tuple[tuple[str, Callable[[VolumeEntry], bool], str, str], ...] = (
    (
        "empty, or dom0 cannot read them",
        lambda volume: not volume.size,
        "in dom0: sparsebak-agent status",
        "",
    ),
    (
        "never backed up",
        lambda volume: volume.session == NO_SESSION,
        "run: sparsebak backup; of a qube that policy refuses, in dom0: sparsebak-agent check",
        "backup",
    ),
    (
        "interrupted",
        lambda volume: bool(volume.flags & VOLUME_PENDING),
        "run: sparsebak backup; it resumes them",
        "backup",
    ),
)
"""What may be said of volumes that dom0 lists, of which, what to do, and the command for it."""


def _of_volumes(listed: list[VolumeEntry]) -> Iterator[Finding]:
    present = [volume for volume in listed if not volume.flags & VOLUME_GONE]
    if not present:
        yield Finding(
            BAD,
            "dom0 lists no volume for this qube",
            "in dom0: sparsebak-agent setup NAME, or add volumes to agent.toml",
        )
        return
    yield _good(f"dom0 lists {count_text(len(present), 'volume')}")
    for what, is_so, remedy, work in _VOLUMES:
        names = [volume.name for volume in present if is_so(volume)]
        if names:
            yield Finding(WARN, f"{what}: {', '.join(names)}", remedy, work)


def of_timer() -> Iterator[Finding]:
    """Whether backups are made by themselves."""
    if shutil.which("systemctl") is None:
        yield Finding(
            WARN,
            "there is no systemd here to start backups",
            "let cron run: sparsebak backup --quiet",
        )
        return
    if systemctl("is-enabled", TIMER) == "enabled":
        yield _good(f"{TIMER} is enabled")
    else:
        remedy = (
            f"here: systemctl enable --now {TIMER}; or in dom0: systemctl enable --now"
            " sparsebak-backup-vm.timer"
        )
        yield Finding(WARN, f"{TIMER} is not enabled here", remedy)

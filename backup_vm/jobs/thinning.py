# SPDX-License-Identifier: GPL-2.0-or-later
"""Choosing what to prune: by rules, or the oldest first until there is room."""

import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from backup_vm.archive.archive import Archive
from backup_vm.archive.sessions import Session
from backup_vm.archive.space import Account
from backup_vm.config import Pruning
from backup_vm.errors import UsageError
from backup_vm.jobs.guard import Guard, Watch
from backup_vm.jobs.keep_rules import AHEAD, Candidate, Rules, duration_text, reasons
from backup_vm.quantities import parse_size
from backup_vm.volumes import Contents, Named

ROOM = "makes room"
NO_RULES = Rules()
_SHARE = re.compile(r"[1-9]\d?%", re.ASCII)


class Verdict(NamedTuple):
    """What is to become of a session. ``why`` it is kept; for one that goes, why that is, if there
    is more to it. ``held``: what is to be said of its volume, which the guard left as it is.
    ``spared``: it would go, were it not for the guard's age.
    """

    volume: Named
    session: Session
    keep: bool
    why: tuple[str, ...]
    held: str = ""
    spared: bool = False


def by_rules(
    volumes: Sequence[Named],
    rules_for: Callable[[Named], Rules],
    now: int | None = None,
    watch: Watch | None = None,
) -> list[Verdict]:
    """A verdict on every session, with a ``watch`` that of its guard on new ones, too. A volume
    without rules keeps all.
    """
    verdicts = []
    for volume in volumes:
        rules = rules_for(volume)
        at = int(time.time()) if now is None else now
        whys = _reasons(volume, volume.sessions, rules, at)
        unkept = [not why and rules.any() for why in whys]
        if watch is not None and any(unkept):
            _spare(volume, rules, at, watch, whys)
        for session, why, before in zip(volume.sessions, whys, unkept, strict=True):
            keep = bool(why) or not rules.any()
            reason = tuple(why) or _no_rules(rules)
            verdicts.append(Verdict(volume, session, keep, reason, spared=keep and before))
    return verdicts


def _reasons(volume: Named, sessions: Sequence[Session], rules: Rules, now: int) -> list[list[str]]:
    candidates = [
        Candidate(session.clear.time, volume.notes.of(session.clear.session).tags)
        for session in sessions
    ]
    return reasons(candidates, rules, now)


def _spare(volume: Named, rules: Rules, now: int, watch: Watch, whys: list[list[str]]) -> None:
    """Add why sessions stay that are new, or that only new ones push out."""
    age = duration_text(watch.guard.seconds)
    settled = watch.settled(volume.sessions)
    kept = {
        session.file: why
        for session, why in zip(settled, _reasons(volume, settled, rules, now), strict=True)
    }
    for session, why in zip(volume.sessions, whys, strict=True):
        if not why and watch.new(session):
            why.append(f"newer than {age}")
        elif not why and kept.get(session.file):
            why.append(f"{', '.join(kept[session.file])} without those of the last {age}")


def held(verdicts: Sequence[Verdict]) -> list[str]:
    """What is to be said of the volumes that the guard left as they are, each in a sentence."""
    return list(dict.fromkeys(verdict.held for verdict in verdicts if verdict.held))


def _hold(verdicts: Sequence[Verdict], watch: Watch) -> list[Verdict]:
    """The same verdicts, with all of a volume kept of which too much would go at once."""
    gone = {verdict.session.file for verdict in verdicts if not verdict.keep}
    volumes = {verdict.volume.id: verdict.volume for verdict in verdicts}
    said = {
        volume.id: watch.too_much(
            volume.name,
            volume.sessions,
            gone.intersection(session.file for session in volume.sessions),
        )
        for volume in volumes.values()
    }
    return [
        v._replace(keep=True, why=v.why if v.keep else ("too much at once",), held=sentence)
        if (sentence := said[v.volume.id])
        else v
        for v in verdicts
    ]


def judge(
    contents: Contents,
    chosen: Sequence[Named],
    pruning: Pruning,
    given: Rules = NO_RULES,
    until_free: str | None = None,
    guard: Guard | None = None,
) -> list[Verdict]:
    """A verdict on every session of the volumes chosen, by the rules given, else by those of the
    settings; within the ``guard``, else that of the settings: see ``held``.

    Raise UsageError where neither says anything, DamagedError where tags are not known.
    """
    until_free = until_free or (pruning.until_free if not given.any() else None)

    def rules_for(volume: Named) -> Rules:
        return given if given.any() else pruning.rules_for(volume.qube, volume.volume)

    if not until_free and not given.any() and not any(rules_for(one).any() for one in chosen):
        raise UsageError(
            "nothing says which sessions to keep",
            "give rules such as --keep-daily 7, --keep-default, or --session",
        )
    for volume in chosen:
        volume.notes_must_be_sound()
        if pruning.by_name and not given.any() and not volume.qube:
            raise UsageError(
                "the settings have rules for qubes by name, and which volume is which is not known",
                "give --passphrase-file or --agent, or rules on the command line",
            )
    archive = contents.archive
    watch = Watch.over(archive, (guard or Guard()).over(pruning.guard))
    verdicts = by_rules(chosen, rules_for, watch=watch)
    if until_free:
        tags = given.tag.union(*(rules_for(volume).tag for volume in chosen))
        wanted = wanted_room(archive, until_free)
        verdicts = for_room(archive, verdicts, wanted, tags, contents.volumes, watch)
    return _hold(verdicts, watch)


def _no_rules(rules: Rules) -> tuple[str, ...]:
    return () if rules.any() else ("no rules for it",)


def wanted_room(archive: Archive, text: str) -> int:
    """Bytes that ``10%`` (of the disk) or ``20G`` stand for. Raise UsageError."""
    if _SHARE.fullmatch(text):
        capacity = archive.storage.capacity()
        if capacity is None:
            raise _unknown(archive)
        return capacity * int(text[:-1]) // 100
    try:
        wanted = parse_size(text)
    except ValueError:
        raise UsageError(
            f"--until-free {text}: give a share of the disk such as 10%, or a size such as 20G"
        ) from None
    capacity = archive.storage.capacity()
    if capacity is not None and wanted > capacity:  # all would go, and it would not be enough
        raise UsageError(
            f"--until-free {text}: the disk of {archive.storage.describe()} has less in all",
            "give a size that it can have free",
        )
    return wanted


def _unknown(archive: Archive) -> UsageError:
    return UsageError(
        f"the free space of {archive.storage.describe()} cannot be determined",
        "give rules, such as --keep-last",
    )


def for_room(
    archive: Archive,
    verdicts: Sequence[Verdict],
    wanted: int,
    keep_tags: frozenset[str],
    all_volumes: Sequence[Named],
    watch: Watch | None = None,
) -> list[Verdict]:
    """The same verdicts, and beyond them the oldest sessions that go until ``wanted`` bytes are
    free, as far as they help.

    The newest session of a volume stays, and those with a tag that rules keep; and those that are
    ahead of our clock, or new to the guard.
    """
    account = Account(archive, {volume.id: list(volume.sessions) for volume in all_volumes})
    free, now = archive.storage.free(), time.time()
    if free is None:
        raise _unknown(archive)
    able = [verdict for verdict in verdicts if verdict.keep and _may_go(verdict, keep_tags, now)]
    new = {v.session.file for v in able if watch is not None and watch.new(v.session)}
    due = sorted(
        (verdict for verdict in able if verdict.session.file not in new),
        key=lambda verdict: verdict.session.clear.time,
    )
    gone = {verdict.session.file for verdict in verdicts if not verdict.keep}

    def enough(count: int) -> bool:
        return (
            free + account.comes_back(gone | {verdict.session.file for verdict in due[:count]})
            >= wanted
        )

    low, high = 0, len(due)
    while low < high:  # the smallest number that is enough, or all
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    extra = {verdict.session.file for verdict in due[:low]}
    short = not enough(low)
    return [
        Verdict(v.volume, v.session, False, (ROOM,))
        if v.session.file in extra
        else v._replace(spared=v.spared or (short and v.session.file in new))
        for v in verdicts
    ]


def _may_go(verdict: Verdict, keep_tags: frozenset[str], now: float) -> bool:
    session, volume = verdict.session, verdict.volume
    tags = volume.notes.of(session.clear.session).tags
    return (
        session is not volume.sessions[-1]
        and session.clear.time <= now + AHEAD
        and not tags & keep_tags
    )

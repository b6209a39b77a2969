# SPDX-License-Identifier: GPL-2.0-or-later
"""Parity files: made for what has none, made again where what they cover has changed.

A set is what one parity file covers: packs alone, or sessions alone. What is new gets a set of its
own, and eight small sets of about one size become one, so that there are few files and nothing is
read more than some times in its life.

Order: new parity files are durable before those go whose files they cover. Nothing that is damaged
is ever covered: what covered it while it was whole stays, to mend it by.
"""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from backup_vm.archive import naming, sessions
from backup_vm.archive.archive import Archive
from backup_vm.archive.pack_check import check
from backup_vm.archive.packs import read_index
from backup_vm.archive.parity import code
from backup_vm.archive.parity.blocks import Run
from backup_vm.archive.parity.plan import (
    LARGEST_FILE,
    SUFFIX,
    Plan,
    Shape,
    foot,
    laid,
    read,
)
from backup_vm.errors import DamagedError, ForbiddenError
from backup_vm.terminal.progress import Progress

LARGEST_PARITY = 64 << 20
"""Bytes of parity that a set has at most, which are in memory while they are made: two whole packs
can be lost then.
"""
LARGEST_SET = 1 << 30
_FEW = 8
"""Sets of about one size (within a factor of as much) that are not joined yet."""


@dataclass
class Kept:
    """What was done: parity files made and removed, and files left without parity, with the
    reason.
    """

    made: int = 0
    removed: int = 0
    left: dict[str, str] = field(default_factory=dict)


def plans(archive: Archive, names: Iterable[str]) -> Iterator[tuple[str, Plan | None]]:
    """Of parity files the plans; None where a file is none of this archive."""
    for name in names:
        try:
            yield name, read(archive.storage, name, archive.parameters.archive)
        except DamagedError:
            yield name, None


def covered(archive: Archive) -> set[str]:
    """Files that are to be covered, as far as they are listed."""
    return {*archive.pack_files(), *archive.session_files()}


def keep(
    archive: Archive, share: float, progress: Progress, stale: Collection[str] = frozenset()
) -> Kept:
    """Cover everything, at least by ``share`` of its bytes. ``stale``: files that have changed, and
    parity files that have.
    """
    there, kept, doomed = _sizes(archive), list[Plan](), list[Plan]()
    found = dict(plans(archive, archive.parity_files()))
    for plan in sorted(filter(None, found.values()), key=lambda plan: -plan.payload):
        good = _good(plan, share, there, stale, kept)
        (kept if good else doomed).append(plan)
    loose = there.keys() - {name for plan in kept for name in plan.names}
    done = _Cover(archive, share, there, progress).run(loose, kept, doomed)
    none = [name for name, plan in found.items() if plan is None]
    done.removed += _remove(archive, none)
    return done


def add(archive: Archive, share: float, names: Iterable[str], progress: Progress) -> Kept:
    """Cover new files. Of what there is, only sets that may be joined with them are looked at."""
    there, sizes = _sizes(archive), archive.storage.sizes(naming.PARITY)
    tiers: defaultdict[int, list[str]] = defaultdict(list)
    for name in archive.parity_files():
        tiers[_tier(sizes[name])].append(name)
    many = [name for some in tiers.values() if len(some) >= _FEW - 1 for name in some]
    kept = [plan for _, plan in plans(archive, many) if plan is not None]
    return _Cover(archive, share, there, progress).run(set(names) & there.keys(), kept, [])


def remove_useless(archive: Archive) -> int:
    """Remove parity files of which nothing that they cover is there any more, and those that are
    none; returns how many.
    """
    there = covered(archive)
    gone = [
        name
        for name, plan in plans(archive, archive.parity_files())
        if plan is None or there.isdisjoint(plan.names)
    ]
    return _remove(archive, gone)


def _sizes(archive: Archive) -> dict[str, int]:
    found = archive.storage.sizes("packs") | archive.storage.sizes("volumes")
    return {name: size for name in covered(archive) if (size := found.get(name, 0)) > 0}


def _good(
    plan: Plan, share: float, there: dict[str, int], stale: Collection[str], kept: Sequence[Plan]
) -> bool:
    """Whether a set can stay as it is."""
    wanted = Shape.of([member.size for member in plan.members], share)
    return (
        plan.intact
        and plan.name not in stale
        and plan.shape.share >= min(share, wanted.share) - 1e-9
        and all(there.get(m.name) == m.size and m.name not in stale for m in plan.members)
        and all(plan.names.isdisjoint(other.names) for other in kept)
    )


def _tier(size: int) -> int:
    return size.bit_length() // 3


class _Cover:
    """Makes parity for what is loose, together with small sets that are many; then removes what
    that is in place of.
    """

    def __init__(
        self, archive: Archive, share: float, there: dict[str, int], progress: Progress
    ) -> None:
        self._archive, self._share, self._there = archive, share, there
        self._progress, self._done = progress, Kept()
        self._numbers = {name: number for number, name in archive.catalog.packs().items()}
        self._rotten = set(archive.catalog.rotten())
        self._spoilt = bool(archive.catalog.spoilt())

    def run(self, loose: Collection[str], kept: Sequence[Plan], doomed: Sequence[Plan]) -> Kept:
        wanted, replaced, done = set(loose), [*doomed], self._done
        for plan in _joined(kept, wanted, self._there):
            replaced.append(plan)
            wanted |= plan.names & self._there.keys()
        groups = [
            group
            for some in (naming.packs_in(wanted), naming.sessions_in(wanted))
            for group in self._groups(some)
        ]
        if groups:
            code.require()
        self._progress.start(sum(self._there[name] for group in groups for name in group))
        for group in groups:
            self._make(group)
        # What covers a file that is damaged now is what it can be mended by.
        gone = [plan.name for plan in replaced if done.left.keys().isdisjoint(plan.names)]
        done.removed += _remove(self._archive, gone)
        return done

    def _groups(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Files by sets."""
        group: list[str] = []
        payload = 0
        for name in names:
            size = self._there[name]
            if size > LARGEST_FILE:
                self._done.left[name] = "it is larger than what parity is made for"
                continue
            if group and payload + size > min(LARGEST_SET, LARGEST_PARITY / self._share):
                yield group
                group, payload = [], 0
            group.append(name)
            payload += size
        if group:
            yield group

    def _make(self, group: Sequence[str]) -> None:
        """Make the parity file of a set; what of it is damaged is left out."""
        archive, files = self._archive, []
        for name in group:
            if problem := self._problem(name):
                self._done.left[name] = problem
            else:
                files.append((name, self._there[name]))
            self._progress.advance(self._there[name])
        if not files:
            return
        identifier = os.urandom(16).hex()
        name = f"{naming.PARITY}/{identifier[:2]}/{identifier}{SUFFIX}"
        shape = Shape.of([size for _, size in files], self._share_of(files))
        plan = Plan(name, shape, tuple(laid(files, shape.block_size)), b"")
        with Run(archive.storage, plan.members, shape.block_size) as run:
            checksums, rows = code.encode(shape, run.read)
        raw = replace(plan, checksums=checksums).build(archive.parameters.archive)
        new = archive.storage.create(name)
        try:
            new.write(raw, *rows, raw, foot(plan))
            new.finish()
        except BaseException:
            new.abandon()
            raise
        self._done.made += 1

    def _share_of(self, files: Sequence[tuple[str, int]]) -> float:
        if naming.is_pack(files[0][0]):
            return self._share
        # Sessions are a thousandth of an archive, and without one all that builds on it is lost:
        # as much parity as there is of them, so that any half of a set may be lost.
        return max(self._share, min(1.0, LARGEST_PARITY / sum(size for _, size in files)))

    def _problem(self, name: str) -> str:
        """Why a file must not be covered: the parity of what is damaged would keep the damage."""
        archive = self._archive
        try:
            if naming.is_session(name):
                sessions.check(archive.storage, sessions.load(archive.storage, name))
                return ""
            number = self._numbers.get(name)
            live = archive.catalog.in_pack(number) if number is not None else {}
            found = check(archive.storage, name, archive.parameters, live)
        except (DamagedError, OSError) as error:
            return str(error)
        bad = [entry for entry in found.bad if (name, entry.offset) not in self._rotten]
        if found.problem or found.gaps or found.wrong or bad or self._lacks(name):
            return f"{archive.storage.describe(name)} is damaged"
        return ""

    def _lacks(self, name: str) -> bool:
        """Whether a chunk that was found damaged, and may be needed, was in a pack; what no session
        needs may be damaged.
        """
        bad = {offset for pack, offset in self._rotten if pack == name}
        if not bad or not self._spoilt:
            return False
        index = read_index(self._archive.storage, name, self._archive.parameters.archive)
        return any(e.offset in bad and not self._archive.catalog.has(e.id) for e in index)


def _joined(kept: Sequence[Plan], loose: Collection[str], there: dict[str, int]) -> Iterator[Plan]:
    """Sets that become one with what is loose, because there are enough of about its size."""
    for is_ours in (naming.is_pack, naming.is_session):
        size = sum(there[name] for name in loose if is_ours(name))
        ours = [plan for plan in kept if is_ours(plan.members[0].name)]
        while size:
            few = [plan for plan in ours if _tier(plan.payload) == _tier(size)]
            if len(few) < _FEW - 1:
                break
            ours = [plan for plan in ours if plan not in few]
            size += sum(plan.payload for plan in few)
            yield from few


def _remove(archive: Archive, names: Sequence[str]) -> int:
    """Remove parity files; returns how many. What is no file is nobody's to remove here."""
    removed = 0
    for name in names:
        with suppress(ForbiddenError, DamagedError):  # whoever may only add leaves it to others
            archive.storage.remove(name)
            removed += 1
    return removed

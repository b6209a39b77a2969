# SPDX-License-Identifier: GPL-2.0-or-later
"""Which archives are beneath a place: a folder of this machine, or one at a URL.

Whoever keeps an archive there chooses what is in its folder, and whoever can write beside it what
is there. So the look is bounded in depth and number, follows no link, goes into no archive, and a
name is taken only where it could be one of a file here. What could not be looked at is reported,
since an archive may be there.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote

from backup_vm import stopping
from backup_vm.archive.storage import is_remote
from backup_vm.archive.storage.objects import can_be_a_name
from backup_vm.errors import NoArchiveError, UsageError

MARK = "archive.toml"
"""What makes a folder an archive: whatever has this name, for a damaged archive is one, too."""
DEPTH = 4
"""Folders from the place down to an archive's own, at most."""
FOLDERS = 50_000
"""Folders that are looked into at most."""
WITHIN = 2_000
"""Folders that are looked into at most within one folder at the place: whoever fills his own keeps
no other from being found.
"""
NAMES = 50_000
"""Names in one folder that are read at most."""
_BATCH = 256
_TOLD = 20
"""Problems that are reported one by one."""


class Looked(NamedTuple):
    """What is in a folder: whether it is an archive, else the names of folders in it as the store
    has them; or why it could not be looked into.
    """

    archive: bool = False
    untrusted_folders: Sequence[str] = ()
    problem: str = ""


class Tree(Protocol):
    """Folders at a place, by their names relative to it; ``""`` is the place itself."""

    def look(self, folders: list[str]) -> Iterator[Looked]:
        """Look into each, in this order, reading at most NAMES of each. Raises SparsebakError where
        the place as a whole cannot be reached.
        """


@dataclass
class Found:
    """Names of archives relative to the place, sorted (``""``: the place is one itself), and what
    could not be looked at.
    """

    archives: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    """Names of folders that could not be looked into."""
    folders: int = 0
    """How many were looked into."""


def open_tree(place: str) -> Tree:
    """The folders at a place; raise UsageError for a URL of a kind that is not known."""
    if not is_remote(place):
        from backup_vm.archive.storage.trees import LocalTree

        return LocalTree(Path(place))
    scheme = place.partition("://")[0]
    if scheme in ("s3", "gs", "az"):
        from backup_vm.archive.storage.trees import ObjectTree

        return ObjectTree(place.rstrip("/"))
    if scheme == "sftp":
        from backup_vm.archive.storage.trees import SftpTree

        return SftpTree(place.rstrip("/"))
    raise UsageError(f"{place}: archives can be in a folder, or at s3://, gs://, az://, sftp://")


def location(place: str, name: str) -> str:
    """The directory or URL of an archive at a place."""
    if not name:
        return place
    if is_remote(place):
        return f"{place.rstrip('/')}/{quote(name)}"
    return str(Path(place) / name)


def find(tree: Tree, place: str, ignored: Collection[str] = ()) -> Found:
    """The archives beneath a place, without looking into those that are ``ignored`` (names relative
    to it). Raises NoArchiveError where there is no such place, SparsebakError.
    """
    found, problems, within = Found(), list[str](), Counter[str]()
    level = [""]
    for depth in range(DEPTH + 1):
        below: list[str] = []
        for start in range(0, len(level), _BATCH):
            stopping.check()
            batch = level[start : start + _BATCH]
            for folder, looked in zip(batch, tree.look(batch), strict=True):
                if looked.problem and not folder:
                    raise NoArchiveError(
                        f"{place}: {looked.problem}", "name a folder that is there"
                    )
                if looked.problem:
                    found.closed.add(folder)
                    problems.append(f"{folder} cannot be looked into: {looked.problem}")
                elif looked.archive:
                    found.archives.append(folder)
                elif depth < DEPTH:
                    names = looked.untrusted_folders
                    below += _acceptable(folder, names, ignored, problems)
        found.folders += len(level)
        level = list(_bounded(sorted(below), FOLDERS - found.folders, within, problems))
    found.archives.sort()
    found.problems = problems[:_TOLD]
    if len(problems) > _TOLD:
        found.problems.append(f"and {len(problems) - _TOLD} more such problems")
    return found


def _bounded(
    level: list[str], most: int, within: Counter[str], problems: list[str]
) -> Iterator[str]:
    """Those of a level's folders that are looked into; ``within`` counts them by the folder at the
    place that they are in.
    """
    for number, name in enumerate(level):
        if number >= most:
            problems.append(f"only {FOLDERS} folders were looked into; not {name} and others")
            return
        top, slash, _ = name.partition("/")
        within[top] += bool(slash)
        if within[top] <= WITHIN:
            yield name
        elif within[top] == WITHIN + 1:
            problems.append(
                f"only {WITHIN} folders were looked into in {top}; not {name} and others"
            )


def _acceptable(
    folder: str, untrusted_names: Sequence[str], ignored: Collection[str], problems: list[str]
) -> Iterator[str]:
    """The folders in one that are looked into. Those that are hidden (``.snapshots``) are not, and
    hold no archive of ours.
    """
    for untrusted_name in untrusted_names:
        if untrusted_name.startswith(".") or untrusted_name == "lost+found":
            continue
        if "/" in untrusted_name or not can_be_a_name(untrusted_name):
            shown = repr(untrusted_name[:80])[1:-1]
            problems.append(f"{folder or 'there'}: a folder has an impossible name, {shown}")
            continue
        name = f"{folder}/{untrusted_name}".lstrip("/")
        if name not in ignored:
            yield name

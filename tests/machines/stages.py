# SPDX-License-Identifier: GPL-2.0-or-later
"""Where in its work a command is: it notes each stage that it comes to, and dies at one where it is
told to.

A stage is a command, what it does to the store, the catalog or dom0, and to which kind of file.
What it comes to is in memory that outlives it.
"""

import functools
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from backup_vm import cli
from backup_vm.agent.client import Agent
from backup_vm.archive import derive, reclaim, reconcile
from backup_vm.archive.catalog_base import CatalogBase
from backup_vm.archive.merge import Merge
from backup_vm.archive.packs import PackReader
from backup_vm.archive.partial import Partial
from backup_vm.archive.storage.directory import Directory
from backup_vm.archive.storage.files import LocalNewFile
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.archive.storage.locks import LocalLocks, RemoteLocks
from backup_vm.archive.storage.remote import RemoteStorage

BEFORE, ENDED = "(before it began)", "(when it had ended)"
_WITH_NAME: tuple[tuple[type, str, str], ...] = (
    (RemoteStorage, "upload", "store"),
    (RemoteStorage, "write", "store"),
    (RemoteStorage, "remove", "remove"),
    (LocalStorage, "write", "store"),
    (Directory, "remove", "remove"),
    (LocalStorage, "punch", "punch"),
    (LocalLocks, "create", "take"),
    (RemoteLocks, "create", "take"),
    (LocalLocks, "renew", "renew"),
    (RemoteLocks, "renew", "renew"),
    (LocalLocks, "remove", "let go of"),
    (RemoteLocks, "remove", "let go of"),
)
"""Methods whose first argument is a file's name."""
_WITHOUT: tuple[tuple[Any, str, str], ...] = (
    (CatalogBase, "commit", "commit the catalog"),
    (Agent, "ask_snapshot", "Snapshot"),
    (Agent, "extract", "Extract"),
    (Agent, "ask_commit", "Commit"),
    (Agent, "abort", "Abort"),
    (Partial, "append", "append to a partial session"),
    (Partial, "publish", "publish a partial session"),
    (Merge, "store", "merge sessions"),
    (PackReader, "read", "read a chunk"),
    (reconcile, "open_catalog", "open the catalog"),
    (derive, "derived", "rebuild the catalog"),
    (reclaim, "referred_to", "look for what is wanted"),
)


@dataclass(frozen=True)
class Death:
    """Before or ``after`` the ``turn``-th time (from 1) that a stage is come to."""

    stage: str
    turn: int
    after: bool

    @property
    def command(self) -> str:
        """Of which it is a stage."""
        return self.stage.partition(":")[0]


class Stages:
    """What one process comes to. Made before it is forked; ``install`` in it, ``come_to`` in the
    parent when it has ended.
    """

    def __init__(self, death: Death | None = None) -> None:
        self._death, self._command, self._turns = death, "", 0
        self._fd = os.memfd_create("stages")

    def install(self) -> None:
        """Note all stages of this process from now on."""
        for kind, method, what in _WITH_NAME:
            setattr(kind, method, self._noting(getattr(kind, method), what, named=True))
        for place, method, what in _WITHOUT:
            setattr(place, method, self._noting(getattr(place, method), what, named=False))
        finish = LocalNewFile.finish

        @functools.wraps(finish)
        def finishing(file: LocalNewFile) -> None:
            self._pass(f"store {_kind(file._name)}", functools.partial(finish, file))

        LocalNewFile.finish = finishing  # type: ignore[method-assign]
        run = cli.main

        def main(words: list[str]) -> int:
            self._command = words[0]
            try:
                return self._pass("begin", lambda: run(words))
            finally:
                self._note(ENDED)

        cli.main = main  # type: ignore[assignment]

    def _noting(self, original: Callable[..., Any], what: str, named: bool) -> Callable[..., Any]:
        @functools.wraps(original)
        def passing(*arguments: Any, **rest: Any) -> Any:
            named_too = named and len(arguments) > 1
            stage = f"{what} {_kind(arguments[1])}" if named_too else what
            return self._pass(stage, functools.partial(original, *arguments, **rest))

        return passing

    def _pass(self, stage: str, action: Callable[[], Any]) -> Any:
        stage = f"{self._command}: {stage}"
        self._note(stage)
        dies = False
        if self._death is not None and stage == self._death.stage:
            self._turns += 1
            dies = self._turns == self._death.turn
        if dies and self._death is not None and not self._death.after:
            os.kill(os.getpid(), signal.SIGKILL)
        done = action()
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    def _note(self, stage: str) -> None:
        os.write(self._fd, stage.encode() + b"\n")

    def now(self) -> str:
        """The stage that was come to last."""
        size = os.fstat(self._fd).st_size
        lines = os.pread(self._fd, 1 << 10, max(size - (1 << 10), 0)).decode().splitlines()
        return lines[-1] if lines else BEFORE

    def come_to(self) -> list[str]:
        """All stages in order; the last one is where it ended. Once only."""
        raw = b""
        while part := os.pread(self._fd, 1 << 20, len(raw)):
            raw += part
        os.close(self._fd)
        return raw.decode().splitlines()


def _kind(name: str) -> str:
    """What kind of file this is, by its name."""
    last = name.rpartition("/")[2]
    for word in ("writer", "notes", "probe"):
        if last.startswith(f"{word}-"):
            return f"the lease ({word})"
    return f"*.{last.rpartition('.')[2]}" if "." in last else last


@dataclass
class Coverage:
    """Of each stage how many commands came to it (``passed``), how often one of them did
    (``turns``), and how many were disturbed there, by the kind of trouble. ``drawn``: how often
    which kind was.
    """

    passed: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    troubled: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    drawn: Counter[str] = field(default_factory=Counter)

    def add(self, come_to: list[str]) -> None:
        """A command that went through these stages."""
        counts = Counter(come_to)
        counts.pop(ENDED, None)
        self.passed.update(counts.keys())
        self.turns |= counts

    def death(self, rng: random.Random, commands: Collection[str]) -> Death | None:
        """One at the stage of these commands where the fewest died so far; None if none is known.
        The first time that the command comes there, as a rule: it may do so only once.
        """
        known = [one for one in sorted(self.passed) if one.partition(":")[0] in commands]
        if not known:
            return None
        dead = self.troubled["kill"]
        least = min(dead[one] for one in known)
        stage = rng.choice([one for one in known if dead[one] == least])
        turn = rng.randrange(self.turns[stage]) + 1 if rng.random() < 0.25 else 1
        return Death(stage, turn, after=rng.random() < 0.3)

    def table(self) -> str:
        """All of it, for people."""
        kinds = sorted(self.troubled)
        found = self.passed.keys() | {stage for one in self.troubled.values() for stage in one}
        rows = [["", "commands", *kinds]]
        for stage in sorted(found):
            counts = (self.troubled[kind][stage] for kind in kinds)
            rows.append([stage, str(self.passed[stage]), *(str(count or "") for count in counts)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        for kind in kinds:
            there = sum(one in self.troubled[kind] for one in self.passed)
            lines.append(f"{kind}: at {there} of {len(self.passed)} stages")
        drawn = ", ".join(f"{what} {count}" for what, count in sorted(self.drawn.items()))
        return "\n".join([*lines, f"steps: {drawn}"])

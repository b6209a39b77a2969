# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands run on a file system that fails, and what is to be found afterwards.

Every run is a child of the test's process, on a copy of one site of its own below the mount of
``FaultFS``. What comes after the fault runs on the folder below the mount, where nothing fails.
"""

import contextlib
import faulthandler
import importlib
import os
import pickle
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backup_vm import cli
from backup_vm.agent import transport
from backup_vm.archive.lease_files import STALE
from backup_vm.errors import SparsebakError
from tests.children import signals_as_usual
from tests.faultfs import FaultFS
from tests.faults.ends import Stamp, predictable, stamp
from tests.in_process import InProcess
from tests.kit import PASSPHRASE, Site

VOLUMES = ("work/private", "other/private")
LONGEST = 40.0
"""Seconds that a run may take; what takes longer hangs."""
BEGAN = int(time.time()) + 60
"""What time it is in runs that are predictable: later than in what was made before."""
NAME = "now"
"""What a copy of the site is called: dom0 remembers where a volume is."""
LEFTOVERS = (".tmp", ".partial", "-restore", ".log", ".part", ".uploading", ".new", ".old")
WARNING = re.compile(r"(<[0-4]>)?(sparsebak|spbk-assemble)")
"""How a line begins that warns, on a terminal or (of dom0's) with its level as a journal has it."""
Images = dict[str, dict[str, bytes]]
"""Contents by volume and session."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code (-1: it hung or died), and what it wrote."""

    code: int
    text: str

    def problems(self) -> Iterator[str]:
        """What is wrong with it, whatever else came of it."""
        if self.code < 0:
            yield f"hung or was killed: {self.text[-9000:]}"
        if "Traceback" in self.text:
            yield f"a traceback: {self.text[-1500:]}"
        if self.code > 0 and not [
            line
            for line in self.text.splitlines()
            if line.split(">")[-1].startswith(("sparsebak", "spbk-assemble"))
        ]:
            yield f"exit {self.code} without a message: {self.text!r}"


def run(action: Callable[[], int], turn: int = 0) -> Outcome:
    """Do something in a child process, with no terminal. What is done in the same ``turn``, other
    than 0, is predictable.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as imported:
        pid = os.fork()
        if pid == 0:
            code, before = 97, set(sys.modules)
            try:
                signals_as_usual()
                null = os.open(os.devnull, os.O_RDONLY)
                os.dup2(null, 0)
                for number in (1, 2):
                    os.dup2(output.fileno(), number)
                faulthandler.dump_traceback_later(LONGEST - 5, file=2)
                sys.stdin = open(0, closefd=False)
                sys.stdout = open(1, "w", buffering=1, closefd=False)
                sys.stderr = open(2, "w", buffering=1, closefd=False)
                if turn:
                    predictable(turn, BEGAN)
                code = action()
            except SparsebakError as error:
                print(f"sparsebak: {error}", file=sys.stderr)
                code = int(error.code)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(BaseException):
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os.pwrite(imported.fileno(), "\n".join(set(sys.modules) - before).encode(), 0)
                os._exit(code)
        ended = os.pidfd_open(pid)
        try:
            if not select.select([ended], [], [], LONGEST)[0]:
                os.kill(pid, signal.SIGKILL)
        finally:
            os.close(ended)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        _import(imported.read().decode().split())
        output.seek(0)
        return Outcome(code, output.read().decode(errors="replace"))


def _import(names: list[str]) -> None:
    """Import what a child had to, so that the next ones need not: it took half of their time."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # no threads: see ``computed``
    for name in sorted(names):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def computed(action: Callable[[], Any]) -> Any:
    """What an action returns, or raises, in a child process.

    The process that forks must have no other threads: one that holds a lock of OpenSSL's at that
    moment leaves it locked in the child for ever. Reading an archive takes threads, so it is done
    aside.
    """
    with tempfile.TemporaryFile() as answer:

        def work() -> int:
            found: tuple[Any, BaseException | None] = (None, None)
            try:
                found = action(), None
            except Exception as error:
                found = None, AssertionError(f"{type(error).__name__}: {error}")
            pickle.dump(found, answer)
            answer.flush()
            return 0

        outcome = run(work)
        assert outcome.code == 0, outcome.text
        answer.seek(0)
        value, error = pickle.load(answer)
    if error is not None:
        raise error
    return value


@dataclass
class Place:
    """One copy of the site: ``root`` is where commands find it, ``site`` is it as they do."""

    root: Path
    names: dict[str, str]
    site: Site = field(init=False)

    def __post_init__(self) -> None:
        self.site = Site(self.root / "site", volumes=VOLUMES, make=False)

    @property
    def words(self) -> dict[str, str]:
        """What stands for {root}, and for sessions, in command lines."""
        return {"root": str(self.root), "passphrase": str(self.root / "passphrase"), **self.names}

    def command(self, *words: str, archive: str = "site/archive") -> Outcome:
        """Run ``sparsebak``."""
        return run(lambda: self.called(*words, archive=archive))

    def called(self, *words: str, archive: str = "site/archive") -> int:
        """The same in this process."""
        os.environ |= {
            "SPARSEBAK_ARCHIVE": str(self.root / archive),
            "SPARSEBAK_AGENT": "unix:stands-for-the-services-in-this-process",
            "HOME": str(self.root / "home"),
        }
        config = self.site.config
        transport.open_transport = lambda name, caller: InProcess(config)
        given = [word.format(**self.words) for word in words]
        return cli.main(["-u", "--caller", "backup-vm", *given])

    def agent_called(self, *words: str) -> int:
        """Run ``sparsebak-agent`` in this process."""
        from dom0_agent.admin.cli import main

        given = [word.format(**self.words) for word in words]
        return int(main(["--config", str(self.site.config), *given]) or 0)

    def images(self, archive: str = "site/archive") -> Images:
        """All that is in an archive."""
        found: Images = computed(
            lambda: {name: self.site.images(name, folder=self.root / archive) for name in VOLUMES}
        )
        return found

    def now(self) -> dict[str, bytes]:
        """The volumes as they are."""
        return {name: self.site.contents(name) for name in VOLUMES}

    def let_time_pass(self) -> None:
        """Let what may be a running command's be so old that it is none's."""
        then = time.time() - STALE - 60
        for path in self.root.rglob("locks/probe-*"):
            os.utime(path, (then, then))

    def leftovers(self) -> list[str]:
        """What should not be there when no command runs."""
        found = [
            str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if path.name.endswith(LEFTOVERS)
        ]
        # With what it says of the command that left it.
        found += [
            f"{path.relative_to(self.root)}: {path.read_text()}"
            for path in self.root.rglob("locks/*")
        ]
        return found + [
            f"snapshot {snapshot}"
            for name in VOLUMES
            for snapshot in self.site.snapshots(name)[:-1]
        ]


@dataclass
class Bench:
    """Copies of one site that commands are run on. ``known`` is what is in its archives at first,
    ``volumes`` what the volumes hold."""

    system: FaultFS
    base: Path
    prepared: Path | None = None
    names: dict[str, str] = field(default_factory=dict)
    known: dict[str, Images] = field(default_factory=dict)
    volumes: dict[str, list[bytes]] = field(default_factory=dict)
    judged: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    """What was found wrong after ends of runs that were looked at."""
    shown: list[str] = field(default_factory=list)
    """What the present scenario shows without a fault, by lines."""
    _made: dict[str, Stamp] = field(default_factory=dict)
    _count: int = 0

    def prepare(self, step: Callable[[Place], object]) -> None:
        """From now on let a copy be of the site after this."""
        self.remove()
        if self.prepared is not None:
            shutil.rmtree(self.prepared)
        self.prepared = None
        faulty, _ = self.place()
        step(faulty)
        self.prepared = self._put_away()
        self._made.clear()

    def place(self) -> tuple[Place, Place]:
        """A new copy: as it is seen through the mount, and as it is."""
        self.system.fail()
        real = self.system.real / NAME
        if real.exists():
            self._put_away().rename(real)
        make_like(self.prepared or self.base, real, self._made)
        return Place(self.system.path / NAME, self.names), Place(
            self.system.real / NAME, self.names
        )

    def pattern(self, where: str) -> str:
        """Names within the mount of what is at ``where`` in the present copy, for faults."""
        return f"{NAME}/{where}"

    def remove(self) -> None:
        """Remove the present copy."""
        self.system.fail()
        if (self.system.real / NAME).exists():
            shutil.rmtree(self._put_away(), ignore_errors=True)
        self._made.clear()

    def _put_away(self) -> Path:
        """Give the present copy another name, so that the next one has the same.

        Through the mount, since the kernel remembers what it saw under the old one.
        """
        self._count += 1
        name = f"n{self._count}"
        (self.system.path / NAME).rename(self.system.path / name)
        return self.system.real / name


def make_like(model: Path, copy: Path, made: dict[str, Stamp]) -> None:
    """Let a folder be like another one, of which it was made before: copy what is not as it was
    ``made``.
    """
    copy.mkdir(exist_ok=True)
    same: dict[str, Stamp] = {}
    for path in sorted(copy.rglob("*"), reverse=True):  # a folder comes after what it holds
        name, now = str(path.relative_to(copy)), stamp(path)
        if now == made.get(name):
            same[name] = now
        elif path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # it holds what is the same
                path.rmdir()
        else:
            path.unlink()
    made.clear()
    for path in sorted(model.rglob("*")):
        name = str(path.relative_to(model))
        target = copy / name
        if name not in same:
            if path.is_dir() and not path.is_symlink():
                target.mkdir(exist_ok=True)
                shutil.copystat(path, target)
            else:
                shutil.copy2(path, target, follow_symlinks=False)
        made[name] = same.get(name) or stamp(target)


def write_passphrase(root: Path) -> None:
    (root / "passphrase").write_bytes(PASSPHRASE + b"\n")

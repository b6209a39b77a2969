# SPDX-License-Identifier: GPL-2.0-or-later
"""A restore, rehearsed: a session is assembled into a file that has no name, its file systems are
checked, all their files listed, and some of them read and compared.

The file is gone when its process is, however that ends. What it holds are the qube's contents in
clear: it is where the user says, else in $TMPDIR or /var/tmp.
"""

import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from backup_vm.archive.image import Image
from backup_vm.archive.notes import Check, Notes
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage.room import room
from backup_vm.errors import DamagedError, SparsebakError
from backup_vm.files import checking
from backup_vm.files.answers import FileSystemError, Part
from backup_vm.files.claims import KINDS, Claims
from backup_vm.files.parser import Parser
from backup_vm.files.session import Found, SessionFiles, shown
from backup_vm.jobs.keep_rules import AHEAD
from backup_vm.jobs.lazy_image import ChunkCache, LazyImage
from backup_vm.jobs.reading import image_bytes, read_image
from backup_vm.terminal.progress import Progress
from backup_vm.terminal.text import count_text, size_text
from backup_vm.volumes import Contents, Named
from common.durable import pwrite_all

OURS = "our readers"
FILES, CHUNKS = 64, 64
"""Files and chunks that are read again and compared."""
_PIECES = 8
"""Pieces, of 1 MiB at most, of each such file."""
_TOLD = 5
"""Files in trouble that are named."""
_SPARE = 0.9
"""Share of the free space that may be used."""


class TooLargeError(SparsebakError):
    """There is no room for an image."""


class OutOfTimeError(SparsebakError):
    """It takes longer than it may."""


def turns(volumes: Sequence[Named], notes: Notes, now: int) -> list[tuple[Named, Session]]:
    """All volumes, each with the session whose turn it is: the volume drilled least recently first,
    of those never drilled the one with the newest session.

    Of a volume its newest session, and every second time the older one drilled least recently.
    """
    ordered = sorted(
        (volume for volume in volumes if volume.sessions),
        key=lambda one: (_time(notes.drills.get(one.id), now), -one.sessions[-1].clear.time),
    )
    return [(volume, _turn(volume, notes, now)) for volume in ordered]


def _turn(volume: Named, notes: Notes, now: int) -> Session:
    *older, newest = volume.sessions

    def last(session: Session) -> int:
        return _time(notes.drilled.get(session.clear.session.hex()), now)

    if not older or last(newest) < max(map(last, older)) or not last(newest):
        return newest
    return min(reversed(older), key=last)


def _time(check: Check | None, now: int) -> int:
    """When that was; 0 for never, and for a time ahead of our clock, which tells nothing."""
    return check.time if check is not None and check.time <= now + AHEAD else 0


@dataclass
class Outcome:
    """What a drill found: of the archive, and of the file systems in the image."""

    problem: str = ""
    damaged: bool = False
    """Whether the problem is damage in the archive."""
    checks: list[dict[str, Any]] = field(default_factory=list)
    """For each file system its partition, kind, and what checked it."""
    files: int = 0
    compared: int = 0
    told: list[str] = field(default_factory=list)

    def fail(self, problem: str, damaged: bool = False) -> None:
        """The first problem counts."""
        if not self.problem:
            self.problem, self.damaged = problem, damaged


class Scratch:
    """A file without a name, as the files of a session want an image."""

    def __init__(self, folder: Path | None) -> None:
        where = Path(os.environ.get("TMPDIR") or "/var/tmp") if folder is None else folder  # noqa: S108
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=where)
            os.fchmod(self._file.fileno(), 0o600)  # a checker opens it again, whatever the umask
        except OSError as error:
            raise self._cannot_write(where, error) from None
        self.where, self.descriptor = where, self._file.fileno()
        self.size = self.chunk_size = 0

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, *what: object) -> None:
        self._file.close()

    def begin(self, image: Image, most: int | None) -> None:
        """Let it have an image's size. Raises TooLargeError where the image's data are more than
        ``most``, or more than there is room for.
        """
        clear = image.session.clear
        needed = sum(int(ids.any(axis=1).sum()) for _, ids in image.arrays()) * clear.chunk_size
        disk = os.fstatvfs(self.descriptor)
        there = room(disk.f_frsize, disk.f_blocks, disk.f_bavail)
        free = None if there is None else int(there.free * _SPARE)
        limits = [limit for limit in (free, most) if limit is not None]
        if limits and needed > min(limits):
            limit = f"{size_text(min(limits))} can be used in {self.where}"
            if most == min(limits):
                limit = f"{size_text(most)} are allowed"
            raise TooLargeError(
                f"{size_text(needed)} to be written, and {limit}", "see --scratch and --space"
            )
        self.size, self.chunk_size = clear.size, clear.chunk_size
        try:
            os.ftruncate(self.descriptor, self.size)
        except OSError as error:
            raise self._cannot_write(self.where, error) from None

    def write(self, offset: int, parts: list[bytes]) -> None:
        """Chunks one after another; the last one of an image may reach beyond its end."""
        data = memoryview(b"".join(parts))[: self.size - offset]
        try:
            pwrite_all(self.descriptor, data, offset)
        except OSError as error:
            raise self._cannot_write(self.where, error) from None

    @staticmethod
    def _cannot_write(where: Path, error: OSError) -> SparsebakError:
        return SparsebakError(
            f"cannot write in {where}: {error.strerror}", "name another folder, by --scratch"
        )

    def read(self, offset: int, length: int) -> bytes:
        """See LazyImage."""
        return os.pread(self.descriptor, min(length, max(self.size - offset, 0)), offset)


class Drill:
    """One drill. ``read`` needs the archive, ``check`` does not: it may take long, and the archive
    is in use only while it is read.
    """

    def __init__(self, volume: Named, session: Session, scratch: Scratch, seconds: float) -> None:
        self.volume, self.session, self.outcome = volume, session, Outcome()
        self._scratch, self._until = scratch, time.monotonic() + seconds
        self._parts: list[tuple[Part, bool, dict[str, Any]]] = []
        self._chance = random.SystemRandom()

    def read(self, contents: Contents, image: Image, progress: Progress) -> None:
        """Assemble the session, and compare what can be read of it. Raises RemovedError."""
        keys, archive, name = contents.needed_keys(), contents.archive, self.volume.name

        def sink(offset: int, parts: list[bytes]) -> None:
            self._in_time()
            self._scratch.write(offset, parts)

        progress.start(image_bytes(image))
        progress.volume(name)
        try:
            read_image(archive, image, keys, name, progress, sink)
            lazy = LazyImage(archive, image, keys, name, ChunkCache())
            try:
                self._compare_chunks(image, lazy)
                self._read_files(lazy)
            finally:
                lazy.close()
        except DamagedError as error:
            self.outcome.fail(str(error), damaged=True)
        except OutOfTimeError as error:
            self.outcome.fail(str(error))

    def _in_time(self) -> None:
        if time.monotonic() > self._until:
            raise OutOfTimeError("it takes longer than it may (--time)")

    def _compare_chunks(self, image: Image, lazy: LazyImage) -> None:
        """Whether what is on the disk now is what the archive's ids say."""
        size = image.session.clear.chunk_size
        numbers = range(image.chunks)
        for number in sorted(self._chance.sample(numbers, min(CHUNKS, len(numbers)))):
            self._in_time()
            chunk = self._scratch.read(number * size, size).ljust(size, b"\0")
            if lazy.ids.of(chunk) != image.ids(number, number + 1).tobytes():
                self.outcome.fail(f"chunk {number} is not on the disk as it was written there")
                return

    def _read_files(self, lazy: LazyImage) -> None:
        with Parser() as parser:
            try:
                number = parser.add(self._scratch.read, self._scratch.size)
                parts = parser.parts(number)
            except FileSystemError as error:
                self.outcome.fail(f"there is no sound partition table: {error}")
                return
            readable = [part for part in parts if part.readable]
            for part in readable:
                which = part.name or part.number
                check = {"partition": which, "kind": part.kind, "by": "", "sound": None}
                self.outcome.checks.append(check)
                self._read_part(parser, part, lazy, check)
            if not readable:
                self.outcome.told.append("there is no file system in it that is read here")

    def _read_part(
        self, parser: Parser, part: Part, lazy: LazyImage, check: dict[str, Any]
    ) -> None:
        name, troubles = self.volume.name, 0

        def trouble(path: bytes, text: str) -> None:
            nonlocal troubles
            troubles += 1
            if troubles <= _TOLD:
                self.outcome.told.append(f"{shown(path)}: {text}")

        try:
            files = SessionFiles(parser, self._scratch, name, part.number)
            original = SessionFiles(parser, lazy, name, part.number)
            self._parts.append((part, not files.notes, check))
            self.outcome.told += files.notes
            # what is in use, or has a journal to be replayed, need not agree with itself
            claims = Claims() if part.kind in KINDS and not files.notes else None
            for found in self._walk(files, trouble, claims):
                self._compare(files, original, found, trouble)
            if claims is not None:
                self._check_whole(files, claims, trouble)
        except FileSystemError as error:
            trouble(b"/", str(error))
        check.update(by=OURS, sound=not troubles, troubles=troubles)

    def _check_whole(self, files: SessionFiles, claims: Claims, trouble: Any) -> None:
        """What the checkers of other file systems do: whether it agrees with itself."""
        for text in files.faults():
            trouble(b"/", text)
        for path, other in claims.twice():
            trouble(path, f"a part of it is a part of {shown(other)} as well")
        if claims.too_many:
            self.outcome.told.append("too many files to tell whether two have the same part of it")

    def _walk(self, files: SessionFiles, trouble: Any, claims: Claims | None) -> list[Found]:
        """Look at all files and where their contents are; returns some of them, any of them alike
        (reservoir sampling).
        """
        chosen: list[Found] = []
        count = 0
        for _, found in files.walk(files.find(b"/"), trouble):
            self._in_time()
            self.outcome.files += 1
            kind = found.stat.mode >> 12
            try:
                files.attributes(found.node)
                if kind == 0o12:
                    files.link(found.node)
                if kind != 0o10:
                    continue
                extents = files.extents(found)
            except FileSystemError as error:
                trouble(found.path, str(error))
                continue
            if claims is not None:
                claims.add(found.path, found.node, extents)
            count += 1
            if len(chosen) < FILES:
                chosen.append(found)
            elif (at := self._chance.randrange(count)) < FILES:
                chosen[at] = found
        return chosen

    def _compare(
        self, files: SessionFiles, original: SessionFiles, found: Found, trouble: Any
    ) -> None:
        self._in_time()
        try:
            here = islice(files.contents(found), _PIECES)
            there = islice(original.contents(found), _PIECES)
            if any(one != other for one, other in zip(here, there, strict=True)):
                self.outcome.fail(f"{shown(found.path)} is not what the archive has")
        except FileSystemError as error:
            trouble(found.path, str(error))
        self.outcome.compared += 1

    def check(self) -> None:
        """Have programs check the file systems, where there are any; what they say counts more
        than what our readers do not read.
        """
        if self.outcome.problem:
            return
        for part, replayed, check in self._parts:
            left = self._until - time.monotonic()
            verdict = checking.check(self._scratch.descriptor, part, replayed, left)
            if verdict.sound is not None:
                check.update(by=verdict.program, sound=verdict.sound)
            if verdict.text:
                self.outcome.told.append(verdict.text)
        for check in self.outcome.checks:
            if not check["sound"]:
                what = check["kind"]
                if check["partition"]:
                    what += f" in partition {check['partition']}"
                own = check["by"] == OURS
                self.outcome.fail(
                    f"our readers find {count_text(check['troubles'], 'trouble')} in its {what}"
                    if own
                    else f"its {what} is damaged, says {check['by']}"
                )

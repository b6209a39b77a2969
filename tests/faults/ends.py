# SPDX-License-Identifier: GPL-2.0-or-later
"""Which ends of two runs are the same one, so that it is judged once.

Most faults of one command end in few ways: nothing was done, or all, or what was done before the
n-th write. So runs are made predictable, what is random and what time it is, and what they leave is
compared but for what no later run can tell.
"""

import contextlib
import hashlib
import os
import random
import re
import shutil
import sqlite3
import stat
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from backup_vm.archive.listing import Listing
from backup_vm.archive.storage.interface import LOCK
from dom0_agent.tracking.state import State, VolumeState

STEP = 10
"""Seconds between the times of two turns."""
_TICK = 50_000_000
"""Nanoseconds after which what is written again has other times for certain."""
Stamp = tuple[int, ...]
_digests: dict[Stamp, bytes] = {}
_dumps: dict[str, bytes] = {}
_SQLITE = b"SQLite format 3\0"
_LEASE = re.compile(rb'"(process|started|since|token)": ("[0-9a-f]*"|\d+)')
_SEEN = re.compile(r"'(seen:([0-9a-f]+))','([0-9a-f]*)'")


def predictable(turn: int, now: float) -> None:
    """Let this process draw random bytes, and find it to be a time, that depend on ``turn``, and on
    who asks: threads take turns as they like.
    """
    drawn: Counter[tuple[str, int]] = Counter()
    lock = threading.Lock()

    def urandom(size: int) -> bytes:
        asking = sys._getframe(1)
        place = asking.f_code.co_filename, asking.f_lineno
        with lock:
            drawn[place] += 1
            seed = f"{turn} {place} {drawn[place]}"
        return hashlib.shake_128(seed.encode()).digest(size)

    os.urandom = urandom
    random._urandom = urandom  # type: ignore[attr-defined]
    random.seed(turn)
    tempfile._name_sequence = (f"{turn}x{number}" for number in range(1 << 30))  # type: ignore[attr-defined]
    time.time = lambda: now + STEP * turn


def stamp(path: Path) -> Stamp:
    """What is another one when a file was written; of a folder, when it may be used otherwise."""
    about = path.lstat()
    if stat.S_ISDIR(about.st_mode):
        return (about.st_mode,)
    return about.st_mode, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def state(root: Path) -> str:
    """A digest of all that is in a folder, and that a later run can tell.

    Of times that is whether a catalog was made for the sessions as they are; of a lease and a lock,
    not who had it, for whoever that was is gone; of places, not the name of this copy.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        digest.update(f"{path.relative_to(root)} {about.st_mode} {about.st_nlink}\n".encode())
        if stat.S_ISREG(about.st_mode):
            told = _told(path, root.name)
            digest.update(_digest(path) if told is None else told)
        elif stat.S_ISLNK(about.st_mode):
            digest.update(os.readlink(path).encode())
    return digest.hexdigest()


def _told(path: Path, place: str) -> bytes | None:
    """What can be told of a file whose bytes are others each time; None of any other file."""
    if path.name == LOCK:
        return b""
    if path.parent.name == "locks":
        return _LEASE.sub(rb"\1", path.read_bytes())
    if path.name.endswith("-journal"):
        return b"a journal"  # what it makes of the file beside it is read there
    if path.name == "state.json":
        whole = vars(VolumeState(path.parents[3], *path.parts[-3:-1]).load()) != vars(State())
        raw = re.sub(f'"/[^"]*/{place}/', '"/', path.read_text(errors="replace"))
        return re.sub('"check": "[0-9a-f]*"', f"whole: {whole}", raw).encode()
    with open(path, "rb") as file:
        if file.read(len(_SQLITE)) == _SQLITE:
            with contextlib.suppress(sqlite3.Error):
                return _dumped(path)
    return None


def _dumped(path: Path) -> bytes:
    """What is in a database, after its journal if it has one."""
    journal = path.with_name(f"{path.name}-journal")
    versions = _versions(path.parent)
    stamps = [stamp(one) for one in (path, journal) if one.exists()]
    key = repr([stamps, versions])
    if key not in _dumps:
        rows = "\n".join(_rows(path, journal, versions))
        found = hashlib.blake2b(rows.encode()).digest()
        if time.time_ns() - max(max(one[-2:]) for one in stamps) < _TICK:
            return found
        _dumps[key] = found
    return _dumps[key]


def _rows(path: Path, journal: Path, versions: dict[str, str]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for one in (path, journal):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(one, Path(folder) / one.name)
        with contextlib.closing(sqlite3.connect(Path(folder) / path.name)) as database:
            for name in ("user_version", "application_id"):
                yield str(database.execute(f"PRAGMA {name}").fetchone())
            for line in database.iterdump():
                yield _SEEN.sub(lambda m: f"{m[1]} {versions.get(m[3], 'other')}", line)


def _versions(archive: Path) -> dict[str, str]:
    """What a catalog says of the sessions of each volume if it was made for them as they are, seen
    through the mount or here.
    """
    through, here = {}, {}
    for path in (archive / "volumes").glob("*/*"):
        about, name = path.stat(), str(path.relative_to(archive))
        through[name] = str(about.st_mtime_ns)
        here[name] = f"{about.st_mtime_ns} {about.st_ctime_ns}"
    return {
        digest: f"{volume} as it is {where}"
        for where, versions in (("there", through), ("here", here))
        for volume, digest in Listing({}, {}, versions).seen(versions).items()
    }


def _digest(path: Path) -> bytes:
    """Of the bytes of a file, and where there are holes."""
    now = stamp(path)
    if now not in _digests:
        found = hashlib.blake2b(f"{_extents(path)} ".encode() + path.read_bytes()).digest()
        if time.time_ns() - max(now[-2:]) < _TICK:
            return found
        _digests[now] = found
    return _digests[now]


def _extents(path: Path) -> list[int]:
    """Where the data of a file begin and end: what was given back is a hole."""
    found, at = [], 0
    with open(path, "rb") as file, contextlib.suppress(OSError):
        while True:
            at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            found.append(at)
            at = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            found.append(at)
    return found

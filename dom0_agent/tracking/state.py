# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 remembers of a volume: one directory, one lock, one small state file whose replacement
is the commit point.

``<state_dir>/volumes/<identity>/<volume>/`` holds ``state.json``, the bitmaps, the committed
chunk ids and the logs of pending sessions. A file that the state file does not mention is left over
from a crash, and removed. What an identity is, ``tracking.identities`` says.

A state file that is damaged, or another volume's, is set aside as ``state.json.damaged``, and dom0
knows nothing of the volume any more: its next session compares everything, and until that is
committed every session of it is treated as an older one.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from common.checked import checksum
from common.durable import (
    UNREADABLE,
    Busy,
    closing_fd,
    lock,
    make_directory,
    read_small,
    replace,
    still_named,
    sync_directory,
    write_synced,
)
from common.existing import children, exists, is_dir
from dom0_agent.bitmap import LARGEST, Bitmap
from dom0_agent.config import Volume, remember
from dom0_agent.log import ERROR, WARNING, log
from dom0_agent.tracking.progress import ArchiveProgress, check_fields
from wire.names import BadName, parse_identity, parse_name
from wire.status import Code, Refused

FORMAT = 3
"""Of the state file; earlier ones, of before the first release, were of archives that nothing reads
any more.
"""
PATIENCE = 10.0
"""Seconds a call waits for the volume's lock before it answers "busy"."""
DAMAGED = "state.json.damaged"


class StateDamaged(Exception):
    """The state file does not say what was written to it."""


class State:
    """The state file. ``sequence`` is the last snapshot number given out, ``base`` the snapshot
    that the bitmaps reach up to.

    A number counts up in its high bits and is random in its low 32: a state put back from an old
    copy never takes another snapshot for the one it remembers. ``place`` is the volume as the last
    Snapshot found it (dom0_agent.config.remember), ``left`` the same of pools that it was in before
    and that may hold snapshots still.
    """

    def __init__(
        self,
        sequence: int = 0,
        base: int | None = None,
        base_size: int = 0,
        base_time: int = 0,
        place: dict[str, Any] | None = None,
        follows: dict[str, ArchiveProgress] | None = None,
        left: list[dict[str, Any]] | None = None,
    ) -> None:
        self.sequence, self.base = sequence, base
        self.base_size, self.base_time = base_size, base_time
        self.place = place
        self.follows = {} if follows is None else follows
        self.left = [] if left is None else left

    def move_to(self, volume: Volume) -> None:
        """Remember where the volume is now."""
        before, self.place = self.place, remember(volume)
        if before is None or _storage(before) == _storage(self.place):
            return
        # It may have been where it is now before: what is there is in use again.
        now = _storage(self.place), _storage(before)
        self.left = [one for one in self.left if _storage(one) not in now] + [before]

    def snapshots(self) -> set[int]:
        """Numbers of the snapshots that are needed."""
        pending = {
            progress.pending.snapshot for progress in self.follows.values() if progress.pending
        }
        return pending | ({self.base} if self.base is not None else set())

    def files(self) -> set[str]:
        """Names of the files that are needed beside the state file itself."""
        names: set[str | None] = set()
        for progress in self.follows.values():
            names |= {progress.map, progress.ids, progress.ids + ".pages"}
            if progress.pending:
                names |= {progress.pending.map, progress.pending.log}
            if progress.redo:
                names.add(progress.redo.log)
        return {name for name in names if name is not None}


class VolumeState:
    """The directory of one volume. Everything but ``load`` and ``load_bitmap`` needs its lock."""

    def __init__(self, state_dir: Path, identity: str, volume: str, qube: str = "") -> None:
        """Of the qube of that identity, which is called ``qube``, or else as its identity."""
        self.identity, self.qube, self.volume = identity, qube or identity, volume
        self.name = f"{self.qube}/{volume}"
        self.directory = state_dir / "volumes" / identity / volume

    @classmethod
    def of(cls, state_dir: Path, volume: Volume) -> Self:
        """Of a volume that the catalog has."""
        return cls(state_dir, volume.identity, volume.volume, volume.qube)

    @contextmanager
    def locked(self, patience: float = PATIENCE) -> Iterator[State]:
        """Hold the volume's lock, as ``alone`` does, and yield its state.

        A damaged state file is set aside here.
        """
        with self.alone(patience):
            try:
                state = self._read()
            except StateDamaged as error:
                os.replace(self._path, self._path.with_name(DAMAGED))
                sync_directory(self.directory)
                log(ERROR, f"{error}; set aside as {DAMAGED}: the volume is compared as a whole")
                state = State()
            yield state

    @property
    def _path(self) -> Path:
        return self.directory / "state.json"

    def is_kept(self) -> bool:
        """Whether anything is known of the volume."""
        return exists(self._path)

    def uses(self) -> int:
        """A number that goes up by one when the lock is taken, and when it is given back."""
        try:
            return os.stat(self.directory / "lock").st_mtime_ns
        except FileNotFoundError:
            return 0

    @contextmanager
    def alone(self, patience: float = PATIENCE) -> Iterator[None]:
        """Hold the volume's lock; Refused when somebody else keeps it longer than ``patience``
        seconds.
        """
        with closing_fd(self._lock(patience)) as fd, _counted(fd):
            yield

    def _lock(self, patience: float) -> int:
        # A file of its own: the state file is replaced, and a lock on it would go with the old one.
        while True:
            make_directory(self.directory)
            try:
                fd = lock(self.directory / "lock", patience=patience)
            except Busy:
                raise Refused(Code.BUSY, f"{self.name} is busy with another operation") from None
            if still_named(fd):
                return fd
            # the volume was forgotten meanwhile, and this lock would keep nobody out

    def load(self) -> State:
        """The state, empty for a volume not seen before, or whose state file is damaged."""
        try:
            return self._read()
        except StateDamaged as error:
            log(ERROR, f"{error}; nothing is known of the volume")
            return State()

    def _read(self) -> State:
        try:
            raw = json.loads(read_small(self._path))
        except FileNotFoundError:
            return State()
        except (ValueError, RecursionError) as error:
            raise StateDamaged(f"{self._path} is damaged: {error}") from None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise  # an administrator's command by somebody who is not root
            if error.errno not in UNREADABLE:  # no damage, and not to be set aside
                raise Refused(
                    Code.INTERNAL, f"{self._path} cannot be read: {error.strerror}"
                ) from None
            raise StateDamaged(f"{self._path} cannot be read: {error.strerror}") from None
        if not isinstance(raw, dict) or not isinstance(found := raw.pop("format", None), int):
            raise StateDamaged(f"{self._path} is damaged: it has no format")
        if found > FORMAT:
            raise Refused(Code.INTERNAL, f"{self._path} is of a newer version of sparsebak")
        if found < FORMAT:
            raise StateDamaged(f"{self._path} is of format {found}, from before the first release")
        if raw.pop("check", None) != checksum(raw):
            raise StateDamaged(f"{self._path} is damaged: its check does not fit")
        try:
            follows = {
                archive: ArchiveProgress.parsed(fields)
                for archive, fields in raw.pop("follows").items()
            }
            state = State(follows=follows, **raw)
            check_fields(state)
            if not isinstance(state.place, dict | None) or not all(
                isinstance(one, dict) for one in [*state.left]
            ):
                raise TypeError("a place is none")
        except (TypeError, KeyError, AttributeError) as error:
            raise StateDamaged(f"{self._path} is damaged: {error}") from None
        self._require_own(state)
        return state

    def _require_own(self, state: State) -> None:
        """Whoever copies a folder of the state to another volume's would have the one's snapshots
        sealed, or dropped, as the other's.
        """
        place = state.place or {}
        found = place.get("identity", self.identity), place.get("volume", self.volume)
        if found != (self.identity, self.volume):
            raise StateDamaged(f"{self._path} is that of {'/'.join(map(str, found))}")

    def save(self, state: State) -> None:
        """The commit point: replace the state file."""
        follows = {archive: progress.fields() for archive, progress in state.follows.items()}
        fields = {**vars(state), "follows": follows}
        whole = {"format": FORMAT, "check": checksum(fields), **fields}
        replace(self._path, json.dumps(whole, indent=1).encode())

    def load_bitmap(self, name: str | None, size: int) -> Bitmap:
        """A bitmap; everything counts as changed when its file is missing, unreadable or
        damaged.
        """
        if name is None:
            return Bitmap()
        try:
            found = Bitmap.from_bytes(read_small(self.directory / name, LARGEST))
        except OSError:
            found = None
        if found is None:
            path = self.directory / name
            log(WARNING, f"{path} is missing or damaged; everything is treated as changed")
            return Bitmap.everything(size)
        return found

    def save_bitmap(self, name: str, changed: Bitmap) -> str:
        """Write a bitmap under a name that no state file mentions yet."""
        write_synced(self.directory / name, changed.to_bytes())
        return name

    def tidy(self, state: State) -> None:
        """Remove every file that the state does not mention. A folder is nobody's leftover."""
        needed = state.files() | {"state.json", DAMAGED, "lock"}
        for path in self.directory.iterdir():
            if path.name not in needed:
                with suppress(IsADirectoryError):
                    path.unlink(missing_ok=True)


@contextmanager
def _counted(fd: int) -> Iterator[None]:
    """See VolumeState.uses. The lock file's time is the counter, which takes no space."""
    _count(fd)
    try:
        yield
    finally:
        _count(fd)


def _count(fd: int) -> None:
    status = os.fstat(fd)
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def _storage(place: dict[str, Any]) -> list[Any]:
    """By what the storage is told from others in which snapshots of ours may be."""
    pool = place.get("pool", {})
    return [pool.get(key) for key in ("path", "volume_group", "thin_pool")]


def known_volumes(state_dir: Path) -> Iterator[tuple[str, str]]:
    """Identities of qubes, and names of their volumes, that dom0 remembers anything of; in
    order.
    """
    for path in (one for folder in children(state_dir / "volumes") for one in children(folder)):
        if not is_dir(path):  # nothing of ours
            continue
        try:
            yield parse_identity(path.parent.name), parse_name(path.name, "volume")
        except BadName:
            continue


def changed_since(store: VolumeState, progress: ArchiveProgress, size: int) -> int:
    """Bytes that may have changed since the archive's last committed session, as of the base
    snapshot.
    """
    if progress.committed is None:
        return size
    changed = store.load_bitmap(progress.map, size)
    if progress.pending and not progress.pending.full:
        changed.merge(store.load_bitmap(progress.pending.map, size))
    return changed.changed(size)

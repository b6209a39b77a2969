"""What dom0 remembers of a volume: one directory, one lock, one small state file whose replacement is the commit point.

``<state_dir>/volumes/<qube>/<volume>/`` holds ``state.json``, the changed maps, the committed chunk ids and the logs of
pending sessions. A file that the state file does not mention is left over from a crash, and removed.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dom0_agent.changed_map import ChangedMap
from wire.durable import Busy, closing_fd, lock, make_directory, replace, write_synced
from wire.names import BadName, parse_name
from wire.status import Code, Refused

FORMAT = 1
PATIENCE = 10.0
"""Seconds a call waits for the volume's lock before it answers "busy"."""


@dataclass
class Committed:
    """The newest session that the backup VM said it holds. Ids and digests in hexadecimal."""

    session: str
    sequence: int
    time: int
    size: int
    domain: str
    digest: str


@dataclass
class Pending:
    """A session begun and neither committed nor aborted. ``root`` and the record's ``digest`` are known once all of it
    has been extracted. ``crowded``: the pool was found nearly full while it was."""

    session: str
    snapshot: int
    sequence: int
    time: int
    size: int
    full: bool
    domain: str
    map: str | None
    log: str
    root: str | None = None
    digest: str | None = None
    crowded: bool = False


@dataclass
class Redo:
    """Ids of a committed session that may not all be in the ids file yet."""

    log: str
    session: str
    full: bool
    size: int


@dataclass
class Follow:
    """What is kept for one archive. ``map`` is a file name; None means nothing changed."""

    volume_id: str
    ids: str
    map: str | None = None
    committed: Committed | None = None
    pending: Pending | None = None
    redo: Redo | None = None


@dataclass
class State:
    """The state file. ``sequence`` is the last snapshot number given out, ``base`` the snapshot last folded in.

    A number counts up in its high bits and is random in its low 32: a state put back from an old copy never takes another
    snapshot for the one it remembers. ``place`` is the volume as the last Snapshot found it (dom0_agent.config.remember).
    """

    sequence: int = 0
    base: int | None = None
    base_size: int = 0
    base_time: int = 0
    place: dict[str, Any] | None = None
    follows: dict[str, Follow] = field(default_factory=dict)

    def snapshots(self) -> set[int]:
        """Numbers of the snapshots that are needed."""
        pending = {follow.pending.snapshot for follow in self.follows.values() if follow.pending}
        return pending | ({self.base} if self.base is not None else set())

    def files(self) -> set[str]:
        """Names of the files that are needed beside the state file itself."""
        names: set[str | None] = set()
        for follow in self.follows.values():
            names |= {follow.map, follow.ids, follow.ids + ".pages"}
            if follow.pending:
                names |= {follow.pending.map, follow.pending.log}
            if follow.redo:
                names.add(follow.redo.log)
        return {name for name in names if name is not None}


class Store:
    """The directory of one volume. Everything but ``load`` and ``load_map`` needs its lock."""

    def __init__(self, state_dir: Path, qube: str, volume: str) -> None:
        self.name = f"{qube}/{volume}"
        self.directory = state_dir / "volumes" / qube / volume

    @contextmanager
    def locked(self, patience: float = PATIENCE) -> Iterator[State]:
        """Hold the volume's lock and yield its state; Refused when somebody else keeps it longer than ``patience`` seconds."""
        make_directory(self.directory)
        try:
            fd = lock(self.directory / "lock", patience=patience)
        except Busy:
            raise Refused(Code.BUSY, f"{self.name} is busy with another operation") from None
        with closing_fd(fd), _counted(fd):
            yield self.load()

    def uses(self) -> int:
        """A number that goes up by one when the lock is taken, and when it is given back."""
        try:
            return os.stat(self.directory / "lock").st_mtime_ns
        except FileNotFoundError:
            return 0

    def load(self) -> State:
        """The state, empty for a volume not seen before."""
        path = self.directory / "state.json"
        try:
            raw = json.loads(path.read_bytes())
        except FileNotFoundError:
            return State()
        except ValueError as error:
            raise Refused(
                Code.INTERNAL, f"{path} is damaged: {error}; see docs/recovery.md"
            ) from None
        if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
            raise Refused(Code.INTERNAL, f"{path} is of another version of sparsebak")
        try:
            follows = {archive: _follow(fields) for archive, fields in raw.pop("follows").items()}
            return State(follows=follows, **raw)
        except (TypeError, KeyError, AttributeError) as error:
            raise Refused(
                Code.INTERNAL, f"{path} is damaged: {error}; see docs/recovery.md"
            ) from None

    def save(self, state: State) -> None:
        """The commit point: replace the state file."""
        replace(
            self.directory / "state.json",
            json.dumps({"format": FORMAT, **asdict(state)}, indent=1).encode(),
        )

    def load_map(self, name: str | None, size: int) -> ChangedMap:
        """A changed map; everything counts as changed when its file is missing or damaged."""
        if name is None:
            return ChangedMap()
        try:
            found = ChangedMap.from_bytes((self.directory / name).read_bytes())
        except FileNotFoundError:
            found = None
        return ChangedMap.everything(size) if found is None else found

    def save_map(self, name: str, changed: ChangedMap) -> str:
        """Write a map under a name that no state file mentions yet."""
        write_synced(self.directory / name, changed.to_bytes())
        return name

    def tidy(self, state: State) -> None:
        """Remove every file that the state does not mention."""
        needed = state.files() | {"state.json", "lock"}
        for path in self.directory.iterdir():
            if path.name not in needed:
                path.unlink(missing_ok=True)


@contextmanager
def _counted(fd: int) -> Iterator[None]:
    """See Store.uses. The lock file's time is the counter, which takes no space."""
    _count(fd)
    try:
        yield
    finally:
        _count(fd)


def _count(fd: int) -> None:
    status = os.fstat(fd)
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def _follow(raw: dict[str, Any]) -> Follow:
    for key, kind in (("committed", Committed), ("pending", Pending), ("redo", Redo)):
        if raw.get(key) is not None:
            raw[key] = kind(**raw[key])
    return Follow(**raw)


def known_volumes(state_dir: Path) -> Iterator[tuple[str, str]]:
    """Qube and volume names that dom0 remembers anything of, in order."""
    for path in sorted((state_dir / "volumes").glob("*/*")):
        try:
            yield parse_name(path.parent.name, "qube"), parse_name(path.name, "volume")
        except BadName:
            continue

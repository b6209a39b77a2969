# SPDX-License-Identifier: GPL-2.0-or-later
"""``notes.json``: what people say of sessions (tags, a note), and when the archive was last
checked, and a restore from it rehearsed.

In clear, also in a sealed archive: the backup VM has no key to seal it with. Its second line is a
checksum, for a tag may be all that keeps a session from being pruned. It says of which archive it
is, so that another one's, copied here, is not believed; that an older one of the same archive was
put back shows by its count of changes alone, to a machine that has seen a later one (noting.py).
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from backup_vm import stopping
from backup_vm.archive.damage import text_checksum
from backup_vm.archive.lease import Lease
from backup_vm.archive.lease_files import NOTES
from backup_vm.archive.naming import NOTES_FILE
from backup_vm.archive.storage import Storage, is_remote
from backup_vm.archive.storage.workspace import NO_LOCKS
from backup_vm.errors import DamagedError, LockedError, UsageError
from common.durable import Busy, closing_fd, lock_fd
from wire import FORMAT, other_format
from wire.layout import LAST_TIME

NAME = NOTES_FILE
LOCK = "notes.lock"
LONGEST_NOTE = 500
_LONGEST = 32 << 20
"""Bytes: notes of some hundred thousand sessions."""
_PATIENCE = 10.0
_SHORT = 16
"""Digits of a pack's name that are noted: names are random, so that these tell packs apart."""
_CHECKSUM = 64
"""Bytes for the second line."""
_PACK = re.compile(rf"[0-9a-f]{{{_SHORT}}}", re.ASCII)
_PLACE = _ARCHIVE = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MOST_CHANGES = 1 << 53
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,62}", re.ASCII)


class Note(NamedTuple):
    """What is said of one session."""

    tags: frozenset[str] = frozenset()
    text: str = ""


class Check(NamedTuple):
    """When something was checked (Unix seconds), and whether it was sound."""

    time: int
    sound: bool


class Notes:
    """All notes: sessions by id in hexadecimal, the last verification of each, the last scrub of
    everything, the last of a part, and when each pack was last scrubbed (by ``short``), with those
    that were not sound then; for those that never were, when a scrub first saw them.
    """

    def __init__(self) -> None:
        self.sessions: dict[str, Note] = {}
        self.verified: dict[str, Check] = {}
        self.scrubbed: Check | None = None
        self.part: Check | None = None
        self.packs: dict[str, int] = {}
        self.unsound: set[str] = set()
        self.rotten: set[str] = set()
        """Packs, by ``short``, in which there are chunks that are damaged, also where these are
        stored again elsewhere: should the catalog be lost, they must not be taken for sound.
        """
        self.seen: dict[str, int] = {}
        self.drilled: dict[str, Check] = {}
        """The last drill of each session, and of each volume: both by id in hexadecimal."""
        self.drills: dict[str, Check] = {}
        self.copies: set[str] = set()
        """Places at which there is, or was, a copy; see ``place_of``."""
        self.archive = ""
        """Id, in hexadecimal, of the archive that they are of; empty where that is not said."""
        self.changes: int | None = None
        """How often they were changed; by a lower number than before, older ones are known."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Notes) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def of(self, session: bytes) -> Note:
        """What is said of a session."""
        return self.sessions.get(session.hex(), Note())

    def keep_only(self, sessions: Iterable[bytes]) -> None:
        """Forget sessions that are gone."""
        present = {session.hex() for session in sessions}
        self.sessions = {
            key: note for key, note in self.sessions.items() if key in present and note != Note()
        }
        self.verified = {key: check for key, check in self.verified.items() if key in present}
        self.drilled = {key: check for key, check in self.drilled.items() if key in present}


def parse_tag(text: str) -> str:
    """A tag: up to 63 letters, digits and ``_.:+-``; not what could be a session's time, or
    ``latest``. Raise UsageError.
    """
    if not _TAG.fullmatch(text) or text[:8].isdigit() or text in ("latest", "all"):
        raise UsageError(
            f"{text[:80]!r} cannot be a tag: use letters, digits and _ . : + -, and no date"
        )
    return text


def parse_note(text: str) -> str:
    """A note: one printable line. Raise UsageError."""
    if len(text) > LONGEST_NOTE or not text.isprintable():
        raise UsageError(f"a note is one line of at most {LONGEST_NOTE} letters")
    return text


def load(storage: Storage) -> Notes:
    """Read them; raise DamagedError."""
    try:
        raw = storage.read(NAME, _LONGEST)
    except FileNotFoundError:
        return Notes()
    notes, own = parse(raw, storage.describe(NAME)), storage.archive.hex()
    if own and notes.archive not in ("", own):
        raise DamagedError(
            f"{storage.describe(NAME)} is of another archive",
            "put this archive's own back from a copy, or remove it and tag again",
        )
    return notes


def parse(raw: bytes, path: str) -> Notes:
    """What a notes.json says that is at ``path``; raise DamagedError."""
    body, _, check = raw.rstrip(b"\n").rpartition(b"\n")
    if check.decode("ascii", "replace") != text_checksum(body):
        raise DamagedError(
            f"{path} is damaged: its checksum is wrong",
            "restore it from a copy, or remove it and tag again",
        )
    try:
        return _parse(json.loads(body))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, UsageError) as error:
        raise DamagedError(
            f"{path} is malformed: {error}", "restore it from a copy, or remove it and tag again"
        ) from None


def _parse(fields: dict[str, Any]) -> Notes:
    if fields["format"] != FORMAT:
        raise ValueError(f"it is of {other_format(fields['format'])[0]}")
    notes = Notes()
    for key, note in fields["sessions"].items():
        notes.sessions[key] = Note(
            frozenset(parse_tag(tag) for tag in note["tags"]), parse_note(note["note"])
        )
    for key, check in fields["verified"].items():
        notes.verified[key] = _check(check)
    for name, drills in (("drilled", notes.drilled), ("drills", notes.drills)):
        drills.update({key: _check(check) for key, check in fields.get(name, {}).items()})
    if fields["scrubbed"] is not None:
        notes.scrubbed = _check(fields["scrubbed"])
    if fields.get("part") is not None:
        notes.part = _check(fields["part"])
    notes.packs = _times(fields.get("packs", []))
    notes.seen = _times(fields.get("seen", []))
    notes.unsound = set(map(_pack, fields.get("unsound", [])))
    notes.rotten = set(map(_pack, fields.get("rotten", [])))
    for copy in fields.get("copies", []):
        if not isinstance(copy, str) or not _PLACE.fullmatch(copy):
            raise ValueError("a copy is noted as 32 hexadecimal digits")
        notes.copies.add(copy)
    notes.archive, notes.changes = _archive(fields.get("archive", "")), fields.get("changes")
    if notes.changes is not None and not _is_count(notes.changes):
        raise ValueError("changes are counted by a number")
    return notes


def _archive(text: Any) -> str:
    if not isinstance(text, str) or not (text == "" or _ARCHIVE.fullmatch(text)):
        raise ValueError("an archive is named by 32 hexadecimal digits")
    return text


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_CHANGES


def _check(fields: Any) -> Check:
    at, sound = fields
    if type(at) is not int or not 0 <= at <= LAST_TIME or type(sound) is not bool:
        raise ValueError("a check is a time, and whether all was sound")
    return Check(at, sound)


def _pack(text: Any) -> str:
    if not isinstance(text, str) or not _PACK.fullmatch(text):
        raise ValueError(f"a pack is noted as {_SHORT} hexadecimal digits")
    return text


def _times(pairs: Any) -> dict[str, int]:
    """The opposite of ``_by_time``; raise ValueError."""
    found: dict[str, int] = {}
    for at, packs in pairs:
        if type(at) is not int or not 0 <= at <= LAST_TIME:
            raise ValueError("packs are noted under the time when they were scrubbed, or seen")
        found |= dict.fromkeys(map(_pack, packs), at)
    return found


def _dump(notes: Notes) -> bytes:
    fields = {
        "format": FORMAT,
        "archive": notes.archive,
        "changes": notes.changes,
        "sessions": {
            key: {"tags": sorted(n.tags), "note": n.text}
            for key, n in sorted(notes.sessions.items())
        },
        "verified": _by_key(notes.verified),
        "drilled": _by_key(notes.drilled),
        "drills": _by_key(notes.drills),
        "scrubbed": [notes.scrubbed.time, notes.scrubbed.sound] if notes.scrubbed else None,
        "part": [notes.part.time, notes.part.sound] if notes.part else None,
        "packs": _by_time(notes.packs),
        "unsound": sorted(notes.unsound),
        "rotten": sorted(notes.rotten),
        "seen": _by_time(notes.seen),
        "copies": sorted(notes.copies),
    }
    # When packs were scrubbed can be had again, then what is damaged; tags cannot.
    for left_out in ((), ("packs", "seen"), ("packs", "seen", "unsound")):
        body = json.dumps(fields | {name: [] for name in left_out}).encode()
        if len(body) <= _LONGEST - _CHECKSUM:
            break
    return body + b"\n" + text_checksum(body).encode() + b"\n"


def _by_key(checks: dict[str, Check]) -> dict[str, list[int | bool]]:
    return {key: [check.time, check.sound] for key, check in sorted(checks.items())}


def _by_time(packs: dict[str, int]) -> list[tuple[int, list[str]]]:
    """Packs by their times: of a hundred thousand, few were scrubbed in each run."""
    found: dict[int, list[str]] = {}
    for pack, at in sorted(packs.items()):
        found.setdefault(at, []).append(pack)
    return sorted(found.items())


def short(pack: str) -> str:
    """What a pack's file name is noted as."""
    return pack.rpartition("/")[2][:_SHORT]


def change(storage: Storage, action: Callable[[Notes], None]) -> Notes:
    """Read, change and write them, with others kept away. Raises DamagedError, LockedError,
    OSError.
    """
    fd: int | None
    try:
        fd = lock_fd(storage.workspace.descriptor(LOCK, create=True), patience=_PATIENCE)
    except Busy:
        raise LockedError(
            f"{storage.workspace.describe(LOCK)} is held by another run",
            "wait for it to end, then try again",
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        fd = None  # the lease keeps away whoever is here, too
    with closing_fd(fd) if fd is not None else contextlib.nullcontext(), _alone(storage):
        if not storage.exists(NAME):
            storage.refresh()  # another machine may just have written the first ones
        notes = load(storage)
        before = _dump(notes)
        action(notes)
        if _dump(notes) != before:
            notes.archive = storage.archive.hex() or notes.archive
            notes.changes = min((notes.changes or 0) + 1, _MOST_CHANGES)
            storage.write(NAME, _dump(notes))
        return notes


def place_of(location: str) -> str:
    """A directory or URL, as it is noted: hashed, for nobody else has to know where other
    copies are.
    """
    whole = location.rstrip("/") if is_remote(location) else os.path.realpath(location)
    return hashlib.blake2b(whole.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def remembers_copy(storage: Storage, location: str) -> bool:
    """Whether a copy of this archive is known to be, or to have been, at a location. Raises
    DamagedError.
    """
    return place_of(location) in load(storage).copies


@contextlib.contextmanager
def _alone(storage: Storage) -> Iterator[None]:
    """Keep away whoever changes them on another machine meanwhile, which flock does not."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            lease = Lease.acquire(storage.locks(), storage.describe(NAME), "notes", kind=NOTES)
            break
        except LockedError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        with stopping.closing():
            lease.release()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a remote place must be able to do, and trying again when it cannot be reached for a
while.
"""

import random
import weakref
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from backup_vm import stopping
from backup_vm.archive.storage.room import Room
from backup_vm.errors import CannotLockError, SparsebakError

if TYPE_CHECKING:
    from backup_vm.archive.storage.vault import Vault

DELAYS = (0.2, 0.5, 1, 2, 4, 8, 16, 16)
"""Seconds between attempts."""
PATIENCE = 60.0
"""Seconds of waiting, in delays and for answers that did not come, after which a place is given up.
"""
DOUBT = 2.0
"""Seconds of waiting after a refusal that looks like a wrong address, while nothing has ever come
from the place in this run.
"""
SILENCE = 30.0
"""Seconds without a byte in either direction after which a request is given up."""
_DEEPEST = 4
_LONGEST = 200
"""Bytes of one part of a name, so that it can be one of a copy here, with a checksum."""
SILENCE_AFTER = 5.0
"""Seconds without a byte, once a place has been given up."""
Result = TypeVar("Result")


class Unreachable(Exception):
    """The place cannot be reached; trying again may help. Any other exception is final.

    ``waited``: seconds in which nothing came. ``doubtful``: as likely a wrong address as a network
    that is down.
    """

    says = "{place} cannot be reached: {error}"
    hint = "what was stored is kept; try again when the network is back"

    def __init__(self, text: str, waited: float = 0.0, doubtful: bool = False) -> None:
        super().__init__(text)
        self.waited, self.doubtful = waited, doubtful


class Silent(Unreachable):
    """A request was taken, and no byte came for SILENCE seconds."""

    says = "{place} does not answer: {error}"
    hint = "what was stored is kept; try again when it answers"

    def __init__(self, waited: float) -> None:
        super().__init__(f"nothing came for {waited:.0f} s", waited)


class Overloaded(Unreachable):
    """The place answers, and says that it cannot do it for now."""

    says = "{place} does not serve for now: {error}"
    hint = "what was stored is kept; try again later"


class Changed(Exception):
    """An object is another than the one that was listed: another machine has replaced it."""


class Entry(NamedTuple):
    """An object: bytes, and a text that is another one when its contents are; an empty one where
    the place tells nothing by which to know that.
    """

    size: int
    version: str


class Objects(Protocol):
    """Named objects elsewhere. Methods raise Unreachable, FileNotFoundError, ForbiddenError,
    SparsebakError.

    They may be called from threads, and end by KeyboardInterrupt soon after ``stopping.ask``.
    """

    pages: bool
    """Whether a listing is several requests, one after another, and ``get_small`` reads an object
    that no listing has told of.
    """
    unreadable: Collection[str]
    """Names of other programs' objects where ours are, which the last listing passed over."""

    def list(self) -> Iterable[tuple[str, Entry]]:
        """All objects. The names are as the place has them: not to be believed."""

    def get(self, name: str, entry: Entry, target: Path) -> None:
        """Fetch a whole object, as it was listed, into a file; raise Changed."""

    def get_range(self, name: str, entry: Entry, offset: int, length: int) -> bytes:
        """Exactly these bytes, which are within the object as it was listed; raise Changed."""

    def put(self, name: str, source: Path, old: Entry | None = None) -> str:
        """Store a file under a name, all of it or nothing; returns its version, which is another
        than that of ``old``, the object that it replaces.
        """

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens when it is gone."""

    def times(self, folder: str) -> dict[str, float]:
        """Names in a folder, and when each was written last, in seconds by the place's clock; as it
        is at this moment.
        """

    def make(self, name: str, raw: bytes) -> bool | None:
        """Store a small object; False where there is one of that name, None where the place cannot
        make sure of that.
        """

    def put_small(self, name: str, raw: bytes, again: bool = False) -> None:
        """Store a small object. With ``again`` it is there; raise FileNotFoundError where it is
        known not to be.
        """

    def get_small(self, name: str, limit: int) -> bytes:
        """The first bytes of an object, at most so many."""

    def sweep(self) -> None:
        """Finish or remove what uploads that were cut have left. For the one that writes."""

    def space(self) -> Room | None:
        """Room there; None where nobody knows."""

    def vault(self, place: "Place", retention: int) -> "Vault":
        """What locks objects there for so many seconds; raise CannotLockError where nothing can,
        SparsebakError.
        """
        raise CannotLockError


_GIVEN_UP: "weakref.WeakSet[Place]" = weakref.WeakSet()
"""Places that could not be reached for too long, and have not answered since."""


def silence() -> float:
    """Seconds without a byte after which a request is given up now."""
    return min(SILENCE, SILENCE_AFTER) if _GIVEN_UP else SILENCE


class Place:
    """Asks a remote place, again and again while it cannot be reached.

    Once it has been given up, each request has one short attempt until one succeeds: what a run
    tidies up at its end (a lease, what is half done) must not take a minute more each.
    """

    def __init__(self, url: str) -> None:
        self._url, self._reached = url, False

    def ask(self, action: Callable[[], Result]) -> Result:
        """Do it; raise SparsebakError when the place cannot be reached for too long."""
        spent = 0.0
        for delay in (None,) if self in _GIVEN_UP else (*DELAYS, None):
            stopping.check()
            try:
                result = action()
            except Unreachable as error:
                self._reached |= isinstance(error, Overloaded)
                patience = DOUBT if error.doubtful and not self._reached else PATIENCE
                spent += error.waited + (delay or 0)
                if delay is None or spent > patience:
                    _GIVEN_UP.add(self)
                    text = error.says.format(place=self._url, error=error)
                    raise SparsebakError(text, _hint(error, patience)) from None
            else:
                self._reached = True
                _GIVEN_UP.discard(self)
                return result
            stopping.sleep(delay * random.uniform(0.7, 1.3))  # noqa: S311
        raise AssertionError("not reached")


def _hint(error: Unreachable, patience: float) -> str:
    return "check the address" if patience == DOUBT else error.hint


def can_be_a_name(name: str) -> bool:
    """Whether an object's name can be one of a file here: it cannot lead elsewhere, and has no
    letters that no name has.
    """
    parts = name.split("/")
    try:
        return len(parts) <= _DEEPEST and all(
            part not in ("", ".", "..") and len(part.encode()) <= _LONGEST and part.isprintable()
            for part in parts
        )
    except UnicodeEncodeError:
        return False

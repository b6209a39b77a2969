"""What a remote place must be able to do, and trying again when it cannot be reached for a while."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from backup_vm.errors import SparsebakError

DELAYS = (0.2, 0.5, 1, 2, 4, 8, 16)
"""Seconds between attempts."""
Result = TypeVar("Result")


class Unreachable(Exception):
    """The place cannot be reached, or did not answer; trying again may help. Anything else raised is final."""


class Entry(NamedTuple):
    """An object: bytes, and a text that is another one when its contents are."""

    size: int
    version: str


class Objects(Protocol):
    """Named objects elsewhere. Methods raise Unreachable, FileNotFoundError, ForbiddenError; and may be called from threads."""

    def list(self) -> Iterator[tuple[str, Entry]]:
        """All objects."""

    def get(self, name: str, target: Path) -> None:
        """Fetch a whole object into a file."""

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """A range of an object, which is not empty; fewer bytes at its end."""

    def put(self, name: str, source: Path) -> str:
        """Store a file under a name, all of it or nothing; returns its version."""

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens when it is gone."""


def persistently(place: str, action: Callable[[], Result]) -> Result:
    """Do it, again and again while the place is unreachable; raise SparsebakError when that lasts too long."""
    for delay in (*DELAYS, None):
        try:
            return action()
        except Unreachable as error:
            if delay is None:
                raise SparsebakError(
                    f"{place} cannot be reached: {error}",
                    "what was stored is kept; try again when the network is back",
                ) from None
            time.sleep(delay * random.uniform(0.7, 1.3))  # noqa: S311
    raise AssertionError("not reached")

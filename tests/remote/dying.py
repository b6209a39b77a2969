# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak`` in a process that dies in place of its n-th request to a store, or is refused it:
``python -m tests.remote.dying KILLED|REFUSED N COUNT WORDS...``. The file COUNT gets the number of
requests that a run made which came to its end.

A process of its own, not a fork: a client of stores has threads that a fork does not take along.
"""

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from backup_vm import cli
from backup_vm.agent import transport
from backup_vm.archive.storage.objects import Place
from backup_vm.archive.storage.remote import RemoteStorage
from backup_vm.errors import ForbiddenError
from tests.in_process import InProcess
from tests.kit import GRAIN
from tests.steps import DIED

Result = TypeVar("Result")
KILLED, REFUSED = "killed", "refused"


def main(how: str, fatal: int, count: Path, words: list[str]) -> int:
    """Run a command; the number of requests is only written by one that comes to its end."""
    config = Path(os.environ["SPARSEBAK_AGENT"].removeprefix("local:"))
    transport.open_transport = lambda *_: InProcess(config)
    RemoteStorage.pack_size = 4 * GRAIN
    numbers, asked = itertools.count(1), Place.ask

    def ask(place: Place, action: Callable[[], Result]) -> Result:
        if next(numbers) == fatal:
            if how == KILLED:
                os._exit(DIED)
            raise ForbiddenError("the store refuses it for now", "try again")
        return asked(place, action)

    Place.ask = ask  # type: ignore[method-assign]
    code = cli.main(words)
    count.write_text(str(next(numbers) - 1))
    return int(code)


if __name__ == "__main__":
    ended = main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    sys.stdout.flush()
    os._exit(ended)  # as the command itself does: threads of a store's client may abort it else

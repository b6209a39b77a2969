# SPDX-License-Identifier: GPL-2.0-or-later
"""Opening an archive that another run holds: the command waits as long as ``--lock-wait`` says."""

import argparse
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from backup_vm import stopping
from backup_vm.archive.catalog_file import explain
from backup_vm.archive.opening import open_archive
from backup_vm.archive.storage import open_storage
from backup_vm.errors import LockedError

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive

_FIRST, _LONGEST = 0.2, 30.0
"""Seconds between two looks, at first and after a while: each one costs a request where the archive
is on a server.
"""


@contextmanager
def open_in_time(
    place: str, writing: bool | None, options: argparse.Namespace, tell: Callable[[str], None]
) -> Iterator["Archive"]:
    """See open_archive. While another run has the archive, wait as long for it as ``options`` say,
    after one line to ``tell``; then raise LockedError. What SQLite raises inside is explained.
    """
    try:
        with _opened(place, writing, options, tell) as archive:
            yield archive
    except sqlite3.Error as error:
        workspace = open_storage(place).workspace
        raise explain(error, f"the catalog of {place}", workspace) from None


@contextmanager
def _opened(
    place: str, writing: bool | None, options: argparse.Namespace, tell: Callable[[str], None]
) -> Iterator["Archive"]:
    patience: float = getattr(options, "lock_wait", 0)
    with ExitStack() as stack:
        began, told = time.monotonic(), False
        while True:
            try:
                archive = stack.enter_context(open_archive(place, writing, options.command))
                break
            except LockedError as locked:
                waited = time.monotonic() - began
                if waited >= patience:
                    raise
                if not told:
                    tell(f"{locked}; waiting for it to end, {_long(patience)} at most")
                told = True
                stopping.sleep(min(max(_FIRST, waited / 10), _LONGEST, patience - waited))
        # Outside the loop: a lease that is lost later is no archive to wait for.
        yield archive


def _long(seconds: float) -> str:
    """A length of time, for people."""
    for word, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{round(seconds / size, 1):g} {word}"
    return f"{round(seconds, 1):g} seconds"

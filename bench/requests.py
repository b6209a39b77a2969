# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bench.requests``: what several requests at once gain where each takes 20 ms, in
rebuilding the catalog, a scrub and a prune: seconds, requests, and the factor.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from backup_vm.archive import opening
from backup_vm.archive.archive import Archive
from backup_vm.archive.prune import prune
from backup_vm.archive.scrub import scrub
from backup_vm.archive.storage.remote import RemoteStorage
from backup_vm.terminal.progress import Progress
from bench.office import CHUNKS, Laptop
from tests.remote.stores import Slow

URL = "s3://bucket/bench"


def pruned(archive: Archive) -> None:
    ((*old, _),) = archive.sessions().values()
    prune(archive, old)


def run(folder: Path, delay: float, readers: int) -> dict[str, tuple[float, int]]:
    """Seconds and requests of each operation, with so many at once."""
    RemoteStorage.readers = readers
    slow = Slow(folder, delay)
    operations: dict[str, Callable[[Archive], object]] = {
        "rebuild": lambda archive: archive.catalog,
        "scrub": lambda archive: list(scrub(archive, Progress())),
        "prune": pruned,
    }
    found = {}
    for name, action in operations.items():
        begun, slow.asked = time.monotonic(), 0
        with (
            mock.patch.object(opening, "open_storage", lambda _: RemoteStorage(URL, slow)),
            opening.open_archive(URL, True) as archive,
        ):
            action(archive)
        found[name] = time.monotonic() - begun, slow.asked
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.requests")
    parser.add_argument("--packs", type=int, default=200)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds that a request takes")
    options = parser.parse_args()
    results = []
    for readers in (1, RemoteStorage.readers):
        with tempfile.TemporaryDirectory(prefix="sparsebak-requests-") as place:
            os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
            laptop = Laptop(f"{place}/archive", 1_790_000_000)
            for number in range(options.packs):
                laptop.back_up(1_790_000_000 + 3600 * number)
            results.append(run(Path(place, "archive"), options.delay, readers))
    one, several = results
    print(f"{options.packs} packs, {options.delay * 1000:.0f} ms a request, {CHUNKS} chunks")
    for name, (took, asked) in one.items():
        now, again = several[name]
        print(
            f"{name}: {took:.2f} s with {asked} requests one after another,"
            f" {now:.2f} s with {again} several at once: {took / now:.1f} times"
        )


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bench.requests``: what several requests at once gain where each takes 20 ms, in
rebuilding the catalog, a scrub, a prune that removes packs, and one that writes packs again:
seconds, requests, and the factor.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
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


BEGIN = 1_790_000_000


def pruned(archive: Archive) -> None:
    ((*old, _),) = archive.sessions().values()
    prune(archive, old)


def run(
    folder: Path, delay: float, operations: Mapping[str, Callable[[Archive], object]]
) -> dict[str, tuple[float, int]]:
    """Seconds and requests of each operation."""
    slow, found = Slow(folder, delay), {}
    for name, action in operations.items():
        begun, slow.asked = time.monotonic(), 0
        with (
            mock.patch.object(opening, "open_storage", lambda _: RemoteStorage(URL, slow)),
            opening.open_archive(URL, True) as archive,
        ):
            action(archive)
        found[name] = time.monotonic() - begun, slow.asked
    return found


OPERATIONS: dict[str, Callable[[Archive], object]] = {
    "rebuild": lambda archive: archive.catalog,
    "scrub": lambda archive: list(scrub(archive, Progress())),
    "prune": pruned,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.requests")
    parser.add_argument("--packs", type=int, default=200)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds that a request takes")
    options = parser.parse_args()
    results = []
    for readers, uploads in ((1, 1), (RemoteStorage.readers, RemoteStorage.uploads)):
        RemoteStorage.readers, RemoteStorage.uploads = readers, uploads
        with tempfile.TemporaryDirectory(prefix="sparsebak-requests-") as place:
            os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
            laptop = Laptop(f"{place}/archive", BEGIN)
            for number in range(options.packs):
                laptop.back_up(BEGIN + 3600 * number)
            found = run(Path(place, "archive"), options.delay, OPERATIONS)
            os.environ["XDG_CACHE_HOME"] = f"{place}/cache-2"
            laptop = Laptop(f"{place}/archive-2", BEGIN, CHUNKS * options.packs)
            laptop.back_up(BEGIN, in_pack=CHUNKS)
            changed = [one for one in range(CHUNKS * options.packs) if one % CHUNKS]
            laptop.back_up(BEGIN + 3600, changed)
            rest = {"catalog": lambda archive: archive.catalog, "rewriting prune": pruned}
            found |= run(Path(place, "archive-2"), options.delay, rest)
            results.append(found)
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

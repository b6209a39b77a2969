# SPDX-License-Identifier: GPL-2.0-or-later
"""``make bench-office``: what it costs to find and look at the archives of many machines side by
side, and archives that are synthetic but whole, for whoever needs many.

No key is needed to keep an archive, so that sealed chunks are random bytes here.
"""

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from backup_vm.archive import sessions
from backup_vm.archive.format import NO_BASE
from backup_vm.archive.opening import create_archive
from backup_vm.archive.packs import NewPack
from backup_vm.archive.parameters import Parameters
from backup_vm.archive.storage import open_storage
from backup_vm.archive.storage.finding import find, open_tree
from backup_vm.jobs.upkeep.plan import Setup
from backup_vm.jobs.upkeep.rounds import Audience, upkeep
from backup_vm.terminal.progress import Progress
from bench.growth import growth
from bench.scale import measured
from wire.chunks import SUITE_BLAKE2B, Keys
from wire.records import Record

CHUNKS = 4
"""Of a laptop's volume."""
KEYS = Keys(bytes(32))


class Laptop:
    """An archive of one volume, and sessions of it that change a chunk each, or those named."""

    def __init__(self, place: str, created: float, chunks: int = CHUNKS) -> None:
        self.place, self._number, self._previous = place, 0, NO_BASE
        self._chunks = chunks
        self._rng = random.Random(place)
        self.id = self._rng.randbytes(16)
        create_archive(
            place,
            Parameters(self.id, "laptop", SUITE_BLAKE2B, 64 << 10, int(created), (), bytes(32)),
        )

    def back_up(self, now: float, changed: Sequence[int] = (), in_pack: int = 1 << 14) -> None:
        """Store a session of that time, as a backup does: the packs first."""
        self._number += 1
        storage, identifier = open_storage(self.place), self._rng.randbytes(16)
        if not changed:
            one = [self._rng.randrange(self._chunks)]
            changed = range(self._chunks) if self._number == 1 else one
        ids = [self._rng.randbytes(32) for _ in changed]
        for at in range(0, len(ids), in_pack):
            pack = NewPack(storage, self.id)
            for chunk_id in ids[at : at + in_pack]:
                pack.add(chunk_id, self._rng.randbytes(200))
            pack.finish()
        record = Record(
            identity="laptop",
            suite=SUITE_BLAKE2B,
            archive=self.id,
            volume_id=KEYS.volume_id("laptop", "home"),
            session=identifier,
            sequence=self._number,
            time=int(now),
            size=self._chunks << 16,
            chunk_size=64 << 10,
            qube="laptop",
            volume="home",
            dedup_domain=bytes(16),
            root=bytes(32),
            previous=bytes(32),
        ).seal(KEYS)
        numbers = b"".join(number.to_bytes(8, "little") for number in changed)
        inherit = 0 if self._number == 1 else self._chunks
        sessions.write(
            storage, record, self._previous, inherit, len(ids), [numbers], [b"".join(ids)]
        )
        self._previous = identifier
        storage.close()


def operations(place: str) -> dict[str, Callable[[], object]]:
    """What is measured."""

    def looked_at() -> object:
        audience = Audience(lambda *_: Progress(), lambda _: None)
        done = upkeep(Setup(place=place), audience, dry_run=True)
        if done["exit"]:
            raise SystemExit(f"bench: {done['problems'] or done['archives'][0]}")
        return done

    return {
        "archives found": lambda: find(open_tree(place), place, frozenset()),
        "upkeep --dry-run": looked_at,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.office")
    parser.add_argument("--sizes", default="10,100,1000", help="numbers of archives")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    sizes = [int(word) for word in options.sizes.split(",")]
    table: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="sparsebak-office-", dir=options.work) as folder:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        made = 0
        for size in sizes:
            for number in range(made, size):
                laptop = Laptop(f"{folder}/laptop-{number:04d}", time.time())
                laptop.back_up(time.time())
            made = size
            for name, action in operations(folder).items():
                took, memory = measured(action)
                table.setdefault(name, []).append((took, memory))
                print(f"{size} archives: {name}: {took:.2f} s, {memory:.0f} MiB", flush=True)
    for line in growth(sizes, table):
        print(line)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-2.0-or-later
"""``make bench-scale``: what an archive costs as it grows: time and peak memory of each operation
at several sizes, as a table.

The archive is synthetic where that changes nothing: chunk ids are random, packs are sparse files
with true heads and indexes, of which nobody looks whether they are holes. Each operation runs in a
process of its own. From how time and memory grow it is told what 100 TiB would take.
"""

import argparse
import datetime
import os
import resource
import secrets
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np

from backup_vm.archive import derive, packs, sessions
from backup_vm.archive.archive import Archive
from backup_vm.archive.format import INDEX_ENTRY_SIZE, PackFoot, PackHead
from backup_vm.archive.opening import create_archive, open_archive
from backup_vm.archive.parameters import Parameters
from backup_vm.archive.prune import prune
from backup_vm.archive.scrub import scrub
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.jobs.feeding import feed
from backup_vm.jobs.keep_rules import DEFAULT
from backup_vm.jobs.thinning import by_rules
from backup_vm.reporting.view import View
from backup_vm.terminal.progress import Progress
from backup_vm.volumes import stored_volumes
from bench.__main__ import machine
from bench.growth import growth, planned, plot
from wire.chunks import SUITE_BLAKE2B, Keys
from wire.records import Record

CHUNK, SEALED, IN_PACK = 128 << 10, 60_000, 540
DAY = 86400
KEYS = Keys(bytes(32))


def build(folder: Path, chunks: int, count: int, in_pack: int = IN_PACK) -> None:
    """One volume: a full session of nine tenths of the chunks, then sessions that change some, and
    packs for all of them, each of so many chunks.
    """
    create_archive(folder, Parameters(bytes(16), "scale", SUITE_BLAKE2B, CHUNK, 0, (), bytes(32)))
    rng = np.random.default_rng(1)
    full, each = chunks * 9 // 10, max(1, chunks // 10 // max(count - 1, 1))
    volume = KEYS.volume_id("big", "private")
    with open_archive(folder, writing=True) as archive:
        pending: list[np.ndarray] = []
        for number in range(count):
            n = full if number == 0 else each
            numbers = (
                np.arange(n, dtype="<u8")
                if number == 0
                else np.sort(rng.choice(full, n, replace=False)).astype("<u8")
            )
            ids = rng.integers(0, 256, (n, 32), dtype=np.uint8)
            record = Record(
                identity="big",
                suite=SUITE_BLAKE2B,
                archive=bytes(16), volume_id=volume, session=(number + 1).to_bytes(16, "big"),
                sequence=number + 1,
                time=1_700_000_000 + number * DAY // 8, size=full * CHUNK, chunk_size=CHUNK,
                qube="big", volume="private",
                dedup_domain=bytes(16), root=bytes(32), previous=bytes(32),
            ).seal(KEYS)  # fmt: skip
            inherit = 0 if number == 0 else full
            base = number.to_bytes(16, "big")
            sessions.write(
                archive.storage, record, base, inherit, n, [numbers.tobytes()], [ids.tobytes()]
            )
            pending.append(ids)
            if sum(len(part) for part in pending) >= in_pack:
                everything = np.concatenate(pending)
                whole = len(everything) // in_pack * in_pack
                for at in range(0, whole, in_pack):
                    _pack(folder, everything[at : at + in_pack])
                pending = [everything[whole:]]
        _pack(folder, np.concatenate(pending))


def _pack(folder: Path, ids: "np.ndarray") -> None:
    """A pack of chunks that are holes, with a true index."""
    name = secrets.token_hex(16)
    path = folder / "packs" / name[:2] / f"{name}.pack"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = PackHead(bytes(16)).build()
    offsets = len(head) + 52 + np.arange(len(ids), dtype="<u8") * (SEALED + 52)
    rows = np.zeros((len(ids), INDEX_ENTRY_SIZE), np.uint8)
    rows[:, :8] = offsets.view(np.uint8).reshape(-1, 8)
    rows[:, 8:12] = np.full(len(ids), SEALED, "<u4").view(np.uint8).reshape(-1, 4)
    rows[:, 12:44] = ids
    index, end = rows.tobytes(), len(head) + len(ids) * (SEALED + 52)
    with open(path, "wb") as file:
        file.write(head)
        file.seek(end)
        file.write(index)
        file.write(PackFoot(end, len(ids), packs.checksum(index)).build())


def measured(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and MiB of memory at its peak, of something done in a child process, small at first
    as this one is.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            start = time.monotonic()
            said = action()
            took = said if isinstance(said, float) else time.monotonic() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            os.write(write, f"{took} {peak / 1024}".encode())
            code = 0
        except BaseException:  # nobody else would show it
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    words = os.read(read, 200).decode().split()
    os.close(read)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("bench: an operation failed")
    return float(words[0]), float(words[1])


def resumed(folder: Path) -> float:
    """Seconds of a rebuild that another one, cut off when all packs were gathered, has begun."""

    class CutOff(Exception):
        pass

    def cut_off(*_: object) -> None:
        raise CutOff

    (folder / "catalog.sqlite").unlink()
    with suppress(CutOff), mock.patch.object(derive, "_fill", cut_off), open_archive(folder, True):
        pass
    begun = time.monotonic()
    with open_archive(folder, True) as archive:
        archive.catalog.count()
    return time.monotonic() - begun


def operations(folder: Path) -> dict[str, Callable[[], object]]:
    """What is measured, in this order: the later ones change the archive."""

    def opened(action: Callable[[Archive], object], writing: bool = False) -> Callable[[], object]:
        def run() -> object:
            with open_archive(folder, writing) as archive:
                return action(archive)

        return run

    def series(archive: Archive) -> list[sessions.Session]:
        (found,) = archive.sessions().values()
        return found

    def rebuild(archive: Archive) -> object:
        return archive.catalog.count()

    def whole() -> object:
        (folder / "catalog.sqlite").unlink()
        return opened(rebuild, True)()

    def listing(archive: Archive) -> object:
        return View.of(archive, stored_volumes(archive, KEYS, {}), False)

    def a_range(archive: Archive) -> object:
        image = archive.image(series(archive), series(archive)[-1])
        ids = image.ids(image.chunks // 2 // 1024 * 1024, image.chunks // 2 // 1024 * 1024 + 8192)
        return archive.catalog.places(row.tobytes() for row in ids)

    def verify(archive: Archive) -> object:
        image = archive.image(series(archive), series(archive)[-1])
        sealed = memoryview(bytes(SEALED))
        with (
            mock.patch.object(packs.PackReader, "read", lambda *_: sealed),
            open(os.devnull, "wb") as out,
        ):
            feed(archive, image, "big/private", Progress())(out)
        return None

    def account(archive: Archive) -> object:
        return View.of(archive, stored_volumes(archive, KEYS, {}), True).account

    def scrub_rest(archive: Archive) -> object:
        return list(scrub(archive, Progress(), chosen=[]))

    def after_another() -> object:
        _pack(folder, np.random.default_rng(2).integers(0, 256, (IN_PACK, 32), dtype=np.uint8))
        return opened(rebuild, True)()

    def known(archive: Archive) -> object:
        image = archive.image(series(archive), series(archive)[-1])
        return sum(len(ids) for _, ids in image.arrays())

    def prune_one(archive: Archive) -> object:
        return prune(archive, [series(archive)[len(series(archive)) // 2]])

    def thin(archive: Archive) -> object:
        verdicts = by_rules(stored_volumes(archive, KEYS, {}), lambda _: DEFAULT, 2_000_000_000)
        return prune(archive, [verdict.session for verdict in verdicts if not verdict.keep])

    return {
        "all packs read into a catalog": opened(rebuild, True),
        "catalog rebuilt": whole,
        "catalog rebuilt, resumed when all packs were read": partial(resumed, folder),
        "list": opened(listing),
        "where a range of 1 GiB is": opened(a_range),
        "all ids of the newest image": opened(known),
        "verify the newest image, packs not read": opened(verify),
        "list with an account of the space": opened(account),
        "scrub of all but the packs": opened(scrub_rest, True),
        "prune one session": opened(prune_one, True),
        "prune by the default rules": opened(thin, True),
        "opened after another machine stored a pack": after_another,
    }


Table = dict[str, list[tuple[float, float]]]
"""By operation: seconds and MiB, for each size."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scale")
    parser.add_argument(
        "--sizes",
        default="100000:100,1000000:500,3000000:1000,10000000:2000",
        help="CHUNKS:SESSIONS,...",
    )
    parser.add_argument(
        "--in-pack",
        type=int,
        default=IN_PACK,
        help="chunks of a pack: few, for as many packs as a large archive has",
    )
    parser.add_argument("--work", type=Path)
    parser.add_argument("--no-write", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = _options()
    # packs are sparse here, and would be taken for holes
    mock.patch.object(LocalStorage, "allocated", lambda self, name: self.size(name)).start()
    mock.patch.object(LocalStorage, "has_holes", lambda *_: False).start()
    table: Table = {}
    sizes = [tuple(int(word) for word in pair.split(":")) for pair in options.sizes.split(",")]
    for chunks, count in sizes:
        work = Path(tempfile.mkdtemp(prefix="sparsebak-scale-", dir=options.work))
        try:
            measured(partial(build, work / "archive", chunks, count, options.in_pack))
            for name, action in operations(work / "archive").items():
                took, memory = measured(action)
                table.setdefault(name, []).append((took, memory))
                print(
                    f"{chunks} chunks, {count} sessions: {name}: {took:.2f} s, {memory:.0f} MiB",
                    flush=True,
                )
        finally:
            shutil.rmtree(work, ignore_errors=True)
    text = _report(sizes, table)
    print(text)
    if not options.no_write:
        result = Path(__file__).parent / "results" / f"scale-{datetime.date.today()}.md"
        result.write_text(f"{text}\n![Time and memory against size]({result.stem}.svg)\n")
        plot([chunks for chunks, _ in sizes], table, result.with_suffix(".svg"))


def _report(sizes: list[tuple[int, ...]], table: Table) -> str:
    """The page, without the picture."""
    heads = [
        f"{chunks:,} chunks ({chunks * CHUNK / (1 << 40):.2f} TiB), {count:,} sessions"
        for chunks, count in sizes
    ]
    lines = [
        f"# Growth, {datetime.date.today()}: {machine()}",
        "",
        f"| operation | {' | '.join(heads)} |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    lines += [
        f"| {name} | {' | '.join(f'{took:.2f} s, {memory:.0f} MiB' for took, memory in row)} |"
        for name, row in table.items()
    ]
    chunks_of = [chunks for chunks, _ in sizes]
    lines += ["", *(f"- {line}" for line in growth(chunks_of, table))]
    lines += ["", *(f"- {line}" for line in planned(chunks_of, table))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

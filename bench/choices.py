# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bench.choices``: what the choices rest on: chunk sizes, levels, dictionaries, hashes,
threads, SQLite's settings, catalogs that grow.

Prints the tables of docs/choices.md. The data are ordinary files of this machine, so that figures
differ between machines; the order of things does not.
"""

import hashlib
import hmac
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from backup_vm.archive.catalog import ChunkCatalog
from bench import workload
from bench.__main__ import machine

SAMPLE = 192 << 20
KEY = bytes(32)


def rate(work: Callable[[bytes], object], chunks: Sequence[bytes]) -> float:
    """MB a second."""
    start = time.perf_counter()
    for chunk in chunks:
        work(chunk)
    return sum(map(len, chunks)) / (time.perf_counter() - start) / 1e6


def cut(data: bytes, size: int) -> list[bytes]:
    """Whole chunks only."""
    return [data[at : at + size] for at in range(0, len(data) - size + 1, size)]


def sizes(data: bytes) -> None:
    """Chunk sizes."""
    print(
        "\n| chunk | zstd -3 | compressed to | BLAKE2b-256 | AES-256-GCM |\n|---|---|---|---|---|"
    )
    for size in (64 << 10, 128 << 10, 256 << 10, 1 << 20):
        chunks, compressor, aead = cut(data, size), zstandard.ZstdCompressor(level=3), AESGCM(KEY)
        sealed = partial(aead.encrypt, bytes(12), associated_data=b"")
        packed = sum(len(compressor.compress(chunk)) for chunk in chunks) / sum(map(len, chunks))
        print(
            f"| {size >> 10} KiB | {rate(compressor.compress, chunks):,.0f} MB/s | {packed:.1%} | "
            f"{rate(_blake2b, chunks):,.0f} MB/s | {rate(sealed, chunks):,.0f} MB/s |"
        )


def _blake2b(chunk: bytes) -> bytes:
    return hashlib.blake2b(chunk, digest_size=32, key=KEY).digest()


def ids(chunks: Sequence[bytes]) -> None:
    """Hashes for chunk ids."""
    print("\n| id | rate |\n|---|---|")
    print(f"| keyed BLAKE2b-256 | {rate(_blake2b, chunks):,.0f} MB/s |")
    print(f"| HMAC-SHA256 | {rate(lambda c: hmac.digest(KEY, c, 'sha256'), chunks):,.0f} MB/s |")
    both = rate(lambda c: (_blake2b(c), hmac.digest(KEY, c, "sha256")), chunks)
    print(f"| both | {both:,.0f} MB/s |")


def levels(chunks: Sequence[bytes], noise: Sequence[bytes]) -> None:
    """zstd's levels, a dictionary, and what does not compress."""
    print("\n| zstd | rate | compressed to | random bytes |\n|---|---|---|---|")
    trained = zstandard.train_dictionary(112 << 10, list(chunks[:: max(1, len(chunks) // 400)]))
    for name, level, words in (
        *((f"-{n}", n, None) for n in (1, 2, 3, 5, 9)),
        ("-3, dictionary of 112 KiB", 3, trained),
    ):
        compressor = zstandard.ZstdCompressor(level=level, dict_data=words)
        packed = sum(len(compressor.compress(chunk)) for chunk in chunks) / sum(map(len, chunks))
        fast, random = rate(compressor.compress, chunks), rate(compressor.compress, noise)
        print(f"| {name} | {fast:,.0f} MB/s | {packed:.2%} | {random:,.0f} MB/s |")


def threads(chunks: Sequence[bytes]) -> None:
    """Hashing, compressing and sealing on several threads."""
    print("\n| threads | rate |\n|---|---|")
    aead = AESGCM(KEY)

    def work(part: Sequence[bytes]) -> None:
        compressor = zstandard.ZstdCompressor(level=3)
        for chunk in part:
            aead.encrypt(bytes(12), compressor.compress(chunk), _blake2b(chunk))

    parts = [chunks[at : at + 8] for at in range(0, len(chunks), 8)]
    for count in (1, 2, 3, 4):
        start = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(work, parts))
        print(
            f"| {count} | {sum(map(len, chunks)) / (time.perf_counter() - start) / 1e6:,.0f} MB/s |"
        )


def databases(rows: int = 200_000, batch: int = 540) -> None:
    """SQLite's settings: adding the chunks of packs one transaction after another, then looking ids
    up.
    """
    print(
        f"\n| journal, synchronous, cache | {rows // batch} transactions of {batch} | one look-up"
        " |\n|---|---|---|"
    )
    for journal, sync, cache in (
        ("DELETE", "FULL", 16), ("TRUNCATE", "FULL", 16), ("TRUNCATE", "FULL", 2),
        ("TRUNCATE", "FULL", 64),
        ("WAL", "FULL", 16), ("WAL", "NORMAL", 16), ("TRUNCATE", "OFF", 16),
    ):  # fmt: skip
        with tempfile.TemporaryDirectory(dir=".") as folder:
            database = sqlite3.connect(Path(folder) / "db", isolation_level=None)
            for name, value in (
                ("journal_mode", journal),
                ("synchronous", sync),
                ("cache_size", -cache << 10),
            ):
                database.execute(f"PRAGMA {name}={value}")
            database.execute(
                "CREATE TABLE chunks (id BLOB PRIMARY KEY, pack INT, offset INT, length INT)"
                " WITHOUT ROWID"
            )
            made = [os.urandom(32) for _ in range(rows)]
            start = time.perf_counter()
            for at in range(0, rows, batch):
                database.execute("BEGIN")
                database.executemany(
                    "INSERT INTO chunks VALUES (?, 1, 2, 3)",
                    ((one,) for one in made[at : at + batch]),
                )
                database.execute("COMMIT")
            added = time.perf_counter() - start
            start = time.perf_counter()
            for one in made[::20]:
                database.execute("SELECT 1 FROM chunks WHERE id=?", (one,)).fetchone()
            looked = (time.perf_counter() - start) / len(made[::20])
            database.close()
        print(f"| {journal}, {sync}, {cache} MiB | {added:.2f} s | {looked * 1e6:.0f} us |")


def catalogs(sizes: Sequence[int] = (1_000_000, 3_000_000, 10_000_000), batch: int = 540) -> None:
    """What one catalog of more chunks costs: processor time of a look-up, and of adding a pack."""
    print("\n| chunks | size | one look-up | a pack of 540 added |\n|---|---|---|---|")
    rng = np.random.default_rng(1)
    for rows in sizes:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            path = Path(folder) / "catalog"
            catalog = ChunkCatalog.create(path, bytes(16))
            catalog.begin()
            numbers = {catalog.add_pack(str(at), 1): at for at in range(rows // batch + 1)}
            catalog.fill(_rows(rng, rows, list(numbers)))
            catalog.commit()
            wanted = [rng.bytes(32) for _ in range(20_000)]
            start = time.process_time()
            for one in wanted:
                catalog.has(one)
            looked = (time.process_time() - start) / len(wanted)
            start = time.process_time()
            for number in range(20):
                catalog.begin()
                pack = catalog.add_pack(f"new {number}", 1)
                catalog.add_all(pack, [(rng.bytes(32), at, 1) for at in range(batch)])
                catalog.commit()
            added = (time.process_time() - start) / 20
            catalog.close()
            size = path.stat().st_size / 1e6
        print(f"| {rows:,} | {size:,.0f} MB | {looked * 1e6:.0f} us | {added * 1e3:.0f} ms |")


def _rows(
    rng: np.random.Generator, rows: int, packs: Sequence[int], parts: int = 64
) -> Iterator[Iterator[tuple[bytes, int, int, int]]]:
    """Chunks with random ids, in the order of these."""
    for part in range(parts):
        ids = rng.integers(0, 256, (rows // parts, 32), dtype=np.uint8)
        each = 256 // parts
        ids[:, 0] = part * each + ids[:, 0] % each
        ordered = sorted(row.tobytes() for row in ids)
        yield (
            (one, packs[int.from_bytes(one[-4:]) % len(packs)], at, 60_000)
            for at, one in enumerate(ordered)
        )


def main() -> None:
    print(machine())
    data = b"".join(islice(workload.ordinary(7), SAMPLE // workload.RUN))
    chunks, noise = cut(data, 128 << 10), [os.urandom(128 << 10) for _ in range(400)]
    sizes(data)
    ids(chunks)
    levels(chunks, noise)
    threads(chunks)
    databases()
    catalogs()


if __name__ == "__main__":
    main()

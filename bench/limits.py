"""What the machine itself needs for the same data: compressing, hashing, copying, and what a verify cannot do without.

``python -m bench.limits blake2b FILE`` (or sha256) reads, decompresses and hashes the chunks that ``python -m bench.limits pack
FROM FILE`` compressed one by one, on two threads, and does nothing else.
"""

import hashlib
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zstandard

from bench.measure import Measured, run

CHUNK = 128 << 10
HASHES = ("blake2b", "sha256")
_LENGTH = struct.Struct("<I")
_TOGETHER = 8


def dense(image: Path, target: Path) -> None:
    """Copy an image without its holes."""
    with open(image, "rb") as source, open(target, "wb") as out:
        at, size = 0, os.fstat(source.fileno()).st_size
        while at < size:
            try:
                data = os.lseek(source.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(source.fileno(), data, os.SEEK_HOLE)
            source.seek(data)
            for begin in range(data, at, 1 << 20):
                out.write(source.read(min(1 << 20, at - begin)))


def limits(image: Path, work: Path) -> dict[str, Measured]:
    """Each measured once, warm."""
    packed, chunks, target = work / "packed", work / "chunks", work / "copied"
    dense(image, packed)
    run([sys.executable, "-m", "bench.limits", "pack", packed, chunks])
    hashing = "import hashlib,sys;hashlib.file_digest(open(sys.argv[1],'rb'),sys.argv[2])"
    found = {
        "zstd -2 -T2": run(["zstd", "-q", "-f", "-2", "-T2", packed, "-o", work / "packed.zst"]),
        "zstd -3 -T2": run(["zstd", "-q", "-f", "-3", "-T2", packed, "-o", work / "packed.zst"]),
        **{f"{name}, one thread": run([sys.executable, "-c", hashing, packed, name]) for name in HASHES},
        "plain copy": run(["cp", packed, target]),
        "zstd -d": run(["zstd", "-q", "-f", "-d", work / "packed.zst", "-o", target]),
        **{verifying(name): run([sys.executable, "-m", "bench.limits", name, chunks]) for name in HASHES},
    }
    for path in (packed, chunks, target, work / "packed.zst"):
        path.unlink()
    return found


def verifying(name: str) -> str:
    """What the time that a verify with that hash cannot do without is called in a report."""
    return f"read, decompress, {name}, two threads"


def pack(source: Path, target: Path) -> None:
    """Each chunk compressed by itself, after its length."""
    compressor = zstandard.ZstdCompressor(level=2)
    with open(source, "rb") as data, open(target, "wb") as out:
        while chunk := data.read(CHUNK):
            frame = compressor.compress(chunk)
            out.write(_LENGTH.pack(len(frame)) + frame)


def verify(source: Path, name: str) -> None:
    """Read, decompress and hash them all on two threads."""
    make = getattr(hashlib, name)

    def work(frames: list[bytes]) -> None:
        decompressor = zstandard.ZstdDecompressor()
        for frame in frames:
            make(decompressor.decompress(frame)).digest()

    with open(source, "rb") as data, ThreadPoolExecutor(2) as pool:
        going, frames = [], []
        while head := data.read(_LENGTH.size):
            frames.append(data.read(_LENGTH.unpack(head)[0]))
            if len(frames) == _TOGETHER:
                going.append(pool.submit(work, frames))
                frames = []
            if len(going) > _TOGETHER:
                going.pop(0).result()
        work(frames)
        for one in going:
            one.result()


if __name__ == "__main__":
    what, *files = sys.argv[1:]
    pack(*map(Path, files)) if what == "pack" else verify(Path(files[0]), what)

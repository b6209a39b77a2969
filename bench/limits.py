# SPDX-License-Identifier: GPL-2.0-or-later
"""What the machine itself needs for the same data: compressing, hashing, copying, and what a verify
cannot do without.

``python -m bench.limits blake2b FILE`` (or sha256) reads, decompresses and hashes the chunks that
``python -m bench.limits pack FROM FILE`` compressed one by one, on two threads, and does nothing
else.
"""

import hashlib
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zstandard

from bench.measure import Measured, run, warm

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


class Limits:
    """What each step is held against, measured when the tools come to that step: a machine's speed
    changes with time.
    """

    def __init__(self, image: Path, work: Path) -> None:
        self._packed, self._chunks, self._frames, self._target = (
            work / name for name in ("packed", "chunks", "zst", "copied")
        )
        dense(image, self._packed)
        run([sys.executable, "-m", "bench.limits", "pack", self._packed, self._chunks])
        hashing = "import hashlib,sys;hashlib.file_digest(open(sys.argv[1],'rb'),sys.argv[2])"
        self._commands: dict[str, dict[str, list[str | Path]]] = {
            "full": {
                **{
                    f"zstd -{n} -T2": [
                        "zstd",
                        "-qf",
                        f"-{n}",
                        "-T2",
                        self._packed,
                        "-o",
                        self._frames,
                    ]
                    for n in (2, 3)
                },
                **{
                    f"{name}, one thread": [sys.executable, "-c", hashing, self._packed, name]
                    for name in HASHES
                },
            },
            "assemble": {
                "plain copy": ["cp", self._packed, self._target],
                "zstd -d": ["zstd", "-qfd", self._frames, "-o", self._target],
            },
            "verify": {
                verifying(name): [sys.executable, "-m", "bench.limits", name, self._chunks]
                for name in HASHES
            },
        }

    def measure(self, step: str) -> dict[str, Measured]:
        """Those of a step, each once, what they read being in memory."""
        if step not in self._commands:
            return {}
        warm([path for path in (self._packed, self._chunks, self._frames) if path.exists()])
        return {name: run(command) for name, command in self._commands[step].items()}

    def close(self) -> None:
        """Remove what was made."""
        for path in (self._packed, self._chunks, self._frames, self._target):
            path.unlink(missing_ok=True)


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

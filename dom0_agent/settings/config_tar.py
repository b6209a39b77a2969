"""dom0's own configuration as a tar archive: files and folders as listed, in order, so that what did not change is the same."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_LEFT_OUT = frozenset({".cache", "Cache", "Trash"})
_LARGEST = 256 << 20
"""Bytes; larger files in dom0's home are not configuration."""


def write(paths: tuple[str, ...], out: IO[bytes]) -> None:
    """Write all that is there of ``paths``: regular files, folders and links; owners and modes go along."""
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for root in paths:
            for path in _below(Path(root)):
                try:
                    info = tar.gettarinfo(path)
                    if info.isreg() and info.size <= _LARGEST:
                        with open(path, "rb") as file:
                            tar.addfile(info, file)
                    elif info.isdir() or info.issym():
                        tar.addfile(info)
                except OSError:  # gone meanwhile, or not to be read
                    continue


def _below(root: Path) -> Iterator[Path]:
    if not root.exists() and not root.is_symlink():
        return
    yield root
    if root.is_dir() and not root.is_symlink():
        for path in sorted(root.iterdir()):
            if path.name not in _LEFT_OUT:
                yield from _below(path)


def members(path: Path) -> Iterator[tarfile.TarInfo]:
    """What is in a restored archive."""
    with tarfile.open(path, "r:") as tar:
        yield from tar


def read(path: Path, name: str) -> bytes:
    """The contents of one regular file in it."""
    with tarfile.open(path, "r:") as tar:
        file = tar.extractfile(tar.getmember(name.lstrip("/")))
        if file is None:
            raise KeyError(name)
        return file.read()

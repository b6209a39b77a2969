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


def files(path: Path) -> Iterator[tuple[str, tarfile.TarInfo, bytes]]:
    """Each regular file of a restored archive: absolute name, what tar says of it, contents. One pass, one file at a time."""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            contents = tar.extractfile(member) if member.isreg() else None
            if contents is not None:
                yield f"/{member.name}", member, contents.read()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Mounting the sessions of a grant, in a disposable and nowhere else: what is mounted is hostile,
and the kernel parses it.

A child of its own shows the images by FUSE and stays (``granted_images``); here they are mounted,
each file system that is in them by a loop device of its own.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from backup_vm.errors import SparsebakError
from backup_vm.files.answers import Part
from backup_vm.files.parser import Parser
from backup_vm.jobs import granted_images
from backup_vm.volumes import IMAGE_SUFFIX
from wire.grants import Grant
from wire.messages import HEADER, HEADER_SIZE, KIND_STATUS, Status
from wire.status import Code
from wire.stream import CutShort, read_exactly

IMAGES = Path("/run/sparsebak/images")
"""Where each session is an image file, for root alone."""
FILES = Path("/mnt/sparsebak")
"""Where their files are, in a folder for each file system."""
_OPTIONS = "loop,ro,nosuid,nodev,noexec"
# What is in a journal cannot be replayed into an image that cannot be written. Sessions of a volume
# have one UUID, which XFS would mount once.
_OF_KIND = {
    "ext4": ("ext4", "noload"),
    "xfs": ("xfs", "norecovery,nouuid"),
    "btrfs": ("btrfs", "rescue=nologreplay"),
    "ntfs": ("ntfs3", ""),
    **{kind: (kind, "") for kind in ("vfat", "exfat", "iso9660", "squashfs")},
}
"""What the kernel calls each kind of file system that is mounted, and the options for it."""
_PATIENCE = 60.0
"""Seconds that the kernel may take to mount one file system."""
_SAID = 500


class NotOpened(SparsebakError):
    """It was not opened; ``status`` is what dom0 is told."""

    def __init__(self, status: int, text: str, hint: str = "") -> None:
        super().__init__(text, hint)
        self.status = status


def opened(qube: str, grant: Grant, warn: Callable[[str], None]) -> list[Path]:
    """Mount all that is in the sessions of a grant, by a backup VM; the folders. What cannot be
    mounted is reported. Raise SparsebakError, after which nothing is mounted.
    """
    IMAGES.mkdir(0o700, parents=True, exist_ok=True)
    FILES.mkdir(0o755, parents=True, exist_ok=True)
    if any(IMAGES.iterdir()):
        raise SparsebakError(f"{IMAGES} shows sessions already", "take another disposable")
    child = _show_images(qube, grant)
    found: list[Path] = []
    try:
        for record in grant.records:
            name = grant.names[record.session]
            found += _mounted(IMAGES / f"{name}{IMAGE_SUFFIX}", FILES / name, warn)
        if not found:
            raise NotOpened(
                Code.SOURCE_FAILED, f"{grant.records[0].name}: there is nothing that can be mounted"
            )
    except BaseException:
        for folder in found:
            subprocess.run(["umount", folder], check=False, capture_output=True)
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(_PATIENCE)
        raise
    return found


def _show_images(qube: str, grant: Grant) -> "subprocess.Popen[bytes]":
    """Start the child, and wait until the images are there; raise NotOpened."""
    program = granted_images.__file__
    folders = [str(Path(__file__).parents[2]), *filter(os.path.isabs, sys.path)]
    command = [sys.executable, "-I", program, qube, str(IMAGES), *folders]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        start_new_session=True,  # it stays when the service has ended
    )
    if child.stdin is None or child.stdout is None or child.stderr is None:
        raise SparsebakError("no pipes to a child")
    with suppress(BrokenPipeError):  # then it says why
        child.stdin.write(grant.build())
        child.stdin.flush()
    with suppress(BrokenPipeError):
        child.stdin.close()
    try:
        kind, length = HEADER.unpack(read_exactly(child.stdout, HEADER_SIZE))
        if (kind, length) != (KIND_STATUS, Status.length()):
            raise CutShort("another frame")
        status = Status.parse(read_exactly(child.stdout, length)).code
    except (CutShort, ValueError):
        status = Code.INTERNAL
    if status == Code.OK:
        return child
    child.stdout.close()
    said = child.stderr.read(_SAID).decode("utf-8", "replace").strip()
    child.kill()
    child.wait()
    raise NotOpened(status, said or "the images cannot be shown")


def _mounted(image: Path, folder: Path, warn: Callable[[str], None]) -> Iterator[Path]:
    """Mount each file system of an image: the only one on ``folder``, partitions on its name with
    their number; those that were.
    """
    for part in _parts(image, warn):
        place = folder.with_name(f"{folder.name}-p{part.number}") if part.number else folder
        place.mkdir(0o755, exist_ok=True)
        kind, more = _OF_KIND[part.kind]
        options = [_OPTIONS, more] if more else [_OPTIONS]
        if part.number:
            options += [f"offset={part.start}", f"sizelimit={part.size}"]
        command = ["mount", "-t", kind, "-o", ",".join(options), str(image), str(place)]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=_PATIENCE
            )
        except subprocess.TimeoutExpired:
            warn(f"{place.name}: {part.kind}: the kernel does not come to an end with it")
            continue
        if done.returncode == 0:
            yield place
            continue
        place.rmdir()
        warn(f"{place.name}: {part.kind}: {done.stderr.strip()[:_SAID]}")


def _parts(image: Path, warn: Callable[[str], None]) -> list[Part]:
    """What is in an image that the kernel may know; by the parser without rights, for no other
    program is to read a partition table as root.
    """
    with open(image, "rb", buffering=0) as file, Parser() as parser:

        def read(offset: int, length: int) -> bytes:
            try:
                return os.pread(file.fileno(), length, offset)
            except OSError as error:
                raise SparsebakError(f"{image.name}: {error.strerror}") from None

        try:
            found = parser.parts(parser.add(read, os.fstat(file.fileno()).st_size))
        except SparsebakError as error:
            warn(f"{image.name}: {error}")
            return []
    # a logical volume, which has a name, is no range of the image
    parts = [part for part in found if part.kind in _OF_KIND and not part.name]
    if not parts:
        kinds = ", ".join(part.kind or "unknown" for part in found)
        warn(f"{image.name}: there is nothing to be mounted in it: {kinds}")
    return parts

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a grant is for, read from the backup VM that has the archive: for the commands that take
``--from``.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from backup_vm import failures
from backup_vm.errors import DamagedError, UsageError, WrongKeyError
from backup_vm.jobs.distant_image import DistantImage
from backup_vm.jobs.lazy_image import ChunkCache
from backup_vm.jobs.reading import open_all
from backup_vm.terminal import output
from backup_vm.terminal.progress import Progress
from backup_vm.unsealing import read_grant
from common.image_writer import ImageWriter
from common.text import sessions_meant
from wire.grants import Grant
from wire.names import BadName, parse_name
from wire.open_chunks import SealedChunk
from wire.records import Record


@dataclass(frozen=True)
class Granted:
    """The sessions of a grant, in a backup VM; ``records`` by sequence."""

    qube: str
    grant: Grant
    records: list[Record]

    @property
    def name(self) -> str:
        """The volume that they are of."""
        return self.records[-1].name

    def find(self, wanted: str) -> list[Record]:
        """``all``, the ``latest``, or one by its time or the beginning of it, or by its id; raise
        WrongKeyError.
        """
        if wanted == "all":
            return self.records
        if wanted == "latest":
            return self.records[-1:]
        names = self.grant.names
        fits = sessions_meant(names, wanted)
        if not wanted or len(fits) != 1:
            how_many = f"{len(fits)} sessions" if len(fits) > 1 else "no session"
            raise WrongKeyError(
                f"the grant is for {how_many} {wanted} of {self.name}",
                f"it is for {', '.join(names[one.session] for one in self.records)}",
            )
        return [one for one in self.records if one.session in fits]

    def title(self, record: Record) -> str:
        """What one of its sessions is called."""
        return self.grant.names[record.session]

    def one(self, wanted: str, what: str) -> Record:
        """As ``find``, for ``what`` is of one session; raise UsageError for ``all``."""
        if wanted == "all":
            raise UsageError(f"{what} of one session", "name it with --session")
        return self.find(wanted)[0]

    def image(self, record: Record, cache: ChunkCache | None = None) -> DistantImage:
        """A session's image, proven complete; raise AgentError, DamagedError."""
        return DistantImage(self.qube, self.grant, record, cache or ChunkCache(0))


def granted(source: str, grant: Path | None, volume: str | None) -> Granted:
    """What ``--from``, ``--grant`` and the name of a volume, if one was given, say; raise
    UsageError, WrongKeyError.
    """
    if grant is None:
        raise UsageError("--from shows the sessions of a grant", "give --grant F")
    try:
        qube = parse_name(source, "qube")
    except BadName as error:
        raise UsageError(str(error)) from None
    found = read_grant(grant)
    record = found.records[-1]
    if volume is not None and volume not in (record.name, record.volume_id.hex()):
        raise WrongKeyError(f"the grant is not for {volume}", f"it is for {record.name}")
    return Granted(qube, found, sorted(found.records, key=lambda one: one.sequence))


def read_all(
    image: DistantImage, progress: Progress, sink: Callable[[int, list[bytes]], object] | None
) -> None:
    """Open every chunk of an image, and hand offset and chunks to ``sink``, in no particular order;
    without one this verifies. Raise AgentError, DamagedError.
    """

    def watched(chunk: SealedChunk) -> SealedChunk:
        progress.advance(image.chunk_size)
        return chunk

    open_all(map(watched, image.sealed_chunks()), image.proven, sink)


def assemble_from(image: DistantImage, target: Path, progress: Progress) -> None:
    """Write an image as a sparse file, beside the target first, so that a failure leaves no half of
    one.
    """
    with output.replacing(target) as beside:
        try:
            file = ImageWriter(beside, image.size)
        except OSError as error:
            raise failures.cannot_write(beside, error) from None
        try:
            read_all(image, progress, file.write)
            file.sync()
        finally:
            file.close()


def problem_of(granted: Granted, record: Record, progress: Progress) -> DamagedError | None:
    """What is wrong with a session, if anything is; raise AgentError where it cannot be read."""
    try:
        with closing(granted.image(record)) as image:
            read_all(image, progress, None)
    except DamagedError as error:
        return error
    return None

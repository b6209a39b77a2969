# SPDX-License-Identifier: GPL-2.0-or-later
"""Sending a session's image to the agent, still sealed, as Restore and Verify take it."""

from collections.abc import Callable
from typing import IO

from backup_vm.archive.archive import Archive
from backup_vm.archive.image import Image
from backup_vm.jobs.reading import sealed_chunks
from backup_vm.terminal.progress import Progress
from wire.messages import END, LENGTH
from wire.wanted import Wanted


def feed(
    archive: Archive, image: Image, name: str, progress: Progress
) -> Callable[[IO[bytes]], None]:
    """Writes a session as Restore and Verify take it: record, all ids, then each page's ids and
    sealed chunks, END.
    """

    def write(stream: IO[bytes]) -> None:
        _write_ids(stream, image)
        _write_chunks(stream, archive, image, name, progress, None)

    return write


def feed_differing(
    archive: Archive, image: Image, name: str, progress: Progress
) -> Callable[[IO[bytes], Callable[[], Wanted]], None]:
    """As ``feed``, for a Restore that says which chunks it wants; the function that is given waits
    for that.
    """

    def write(stream: IO[bytes], told: Callable[[], Wanted]) -> None:
        _write_ids(stream, image)
        stream.flush()
        wanted = told()
        progress.advance((wanted.chunks - len(wanted)) * image.session.clear.chunk_size)
        _write_chunks(stream, archive, image, name, progress, wanted)

    return write


def _write_ids(stream: IO[bytes], image: Image) -> None:
    stream.write(image.session.record)
    for _, ids in image.windows():
        stream.write(b"".join(ids))


def _write_chunks(
    stream: IO[bytes],
    archive: Archive,
    image: Image,
    name: str,
    progress: Progress,
    only: Wanted | None,
) -> None:
    end = 0
    for ids, chunks in sealed_chunks(archive, image, name, only=only):
        first, end = end, end + len(ids)
        if only is not None and not only.any(first, end):
            continue
        stream.write(b"".join(ids))
        for chunk in chunks:
            stream.write(LENGTH.pack(len(chunk.untrusted_data)))
            stream.write(chunk.untrusted_data)
        done = len(ids) if only is None else only.count(first, end)
        progress.advance(done * image.session.clear.chunk_size)
    stream.write(END)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What Commit does to the chunk ids that dom0 keeps: they follow the session's log, or are not used
any more.

The record that dom0 sealed and the ids that it keeps must come from the same bytes. So ids are
believed only while they give the root of the committed record, and a log only when, laid over them,
it gives the root of the session's. What does not is left where it is: it never proves, and the next
session compares the whole volume.
"""

from enum import Enum, auto

from dom0_agent.keyring import ArchiveKey
from dom0_agent.log import WARNING, log
from dom0_agent.tracking.chunk_ids import CommittedIds, IdsDamaged
from dom0_agent.tracking.pending_log import LogDamaged, PendingLog
from dom0_agent.tracking.progress import ArchiveProgress, Pending, Redo
from dom0_agent.tracking.state import VolumeState
from wire.merkle import Tree, chunk_count
from wire.status import Refused


class Work(Enum):
    """What is to be done to the ids: nothing, follow the log, or nothing because they are of no use
    any more.
    """

    IDLE = auto()
    APPLY = auto()
    GIVEN_UP = auto()


def opened_ids(
    store: VolumeState, progress: ArchiveProgress, archive: ArchiveKey, dedup_domain: str
) -> CommittedIds:
    """The ids of an archive's committed session; not proven yet.

    ``dedup_domain`` (hexadecimal) is that of the session whose pages are to be made or compared.
    That is the committed session's too, wherever its ids are used: one in another domain is a full
    session.
    """
    keys = archive.domain_keys(bytes.fromhex(dedup_domain))
    return CommittedIds(store.directory / progress.ids, Tree(keys))


def prove(ids: CommittedIds, progress: ArchiveProgress, archive: ArchiveKey) -> bool:
    """Whether ids are those of the committed session."""
    committed = progress.committed
    return committed is not None and ids.prove(
        committed.size, archive.chunk_size, bytes.fromhex(committed.root)
    )


def prepare(
    store: VolumeState, progress: ArchiveProgress, archive: ArchiveKey, pending: Pending
) -> tuple[Work, bytes]:
    """What Commit has to do, and the page digests there are then. Refused while Extract runs."""
    chunks = chunk_count(pending.size, archive.chunk_size)
    session_log = PendingLog(store.directory / pending.log)
    try:
        with opened_ids(store, progress, archive, pending.dedup_domain) as ids:
            if session_log.position != chunks:
                raise LogDamaged(f"{pending.log} covers {session_log.position} of {chunks} chunks")
            if not pending.full and not prove(ids, progress, archive):
                raise IdsDamaged(f"{progress.ids} is not that of the session before")
            pages = b"".join(ids.digests(session_log.entries(), pending.full, chunks))
            if ids.tree.root(pending.size, archive.chunk_size, [pages]).hex() != pending.root:
                raise LogDamaged(f"{pending.log} does not give the root of its session")
            same = not pending.full and ids.count == chunks
            if same and next(session_log.entries(), None) is None:
                return Work.IDLE, pages
            return Work.APPLY, pages
    except (LogDamaged, IdsDamaged, OSError) as error:
        log(WARNING, f"{store.name}: {error}; its next session compares everything")
        return Work.GIVEN_UP, b""
    finally:
        session_log.close()


def apply(
    store: VolumeState,
    progress: ArchiveProgress,
    archive: ArchiveKey,
    redo: Redo,
    pages: bytes | None = None,
) -> None:
    """Bring the ids up to the committed session, from its log. Without ``pages``: again, after a
    crash. Raise OSError.
    """
    chunks = chunk_count(redo.size, archive.chunk_size)
    session_log = PendingLog(store.directory / redo.log)
    try:
        if session_log.position != chunks:
            raise LogDamaged(f"{redo.log} covers {session_log.position} of {chunks} chunks")
        with opened_ids(store, progress, archive, redo.dedup_domain) as ids:
            ids.apply(session_log.entries(), redo.full, chunks, pages)
    finally:
        session_log.close()


def apply_again(
    store: VolumeState, progress: ArchiveProgress, archive: ArchiveKey, redo: Redo
) -> None:
    """Finish what a crash or a failed write interrupted; what fails again leaves ids that do not
    prove.
    """
    try:
        apply(store, progress, archive, redo)
    except (Refused, IdsDamaged, OSError) as error:  # the archive's key may be damaged, too
        log(WARNING, f"{store.name}: {error}; its next session compares everything")

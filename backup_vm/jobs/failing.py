"""What can make an end of a backup run, or of one session of it, in words."""

import errno
import sqlite3
from dataclasses import fields

from backup_vm.archive import catalog_file
from backup_vm.archive.archive import Archive
from backup_vm.archive.parameters import Parameters
from backup_vm.archive.sessions import Session
from backup_vm.errors import AgentError, SparsebakError
from wire.chunks import NotAuthentic
from wire.messages import OFFER_FULL, OFFER_RESUMED, Offer, VolumeEntry
from wire.records import Clear, read_clear


def check_offer(
    volume: VolumeEntry, offer: Offer, newest: Session | None, archive: Parameters
) -> None:
    """Raise AgentError unless an offer is one of this volume, and of a session that can be stored:
    a full one, one that an earlier run began, or one that builds on the newest there is.
    """
    if offer.volume_id != volume.volume_id or offer.chunk_size != archive.chunk_size:
        raise AgentError(f"Snapshot {volume.name}: the agent offered something else")
    if not offer.flags & (OFFER_FULL | OFFER_RESUMED) and (
        newest is None or offer.previous != newest.clear.session
    ):
        raise AgentError(
            f"Snapshot {volume.name}: the agent builds on a session that is not the newest"
        )


def check_record(name: str, record: bytes, offer: Offer, archive: Parameters) -> None:
    """Raise AgentError unless a record says what was offered."""
    try:
        clear = read_clear(record)
    except NotAuthentic as error:
        raise AgentError(f"Extract {name}: {error}") from None
    offered = {
        one.name: getattr(offer, one.name)
        for one in fields(Clear)
        if one.name not in ("suite", "archive")
    }
    if clear != Clear(suite=archive.suite, archive=archive.archive, **offered):
        raise AgentError(f"Extract {name}: the record is not the one of the session offered")


def explained(error: OSError | sqlite3.Error, archive: Archive) -> SparsebakError:
    """What made an end of a run, in one line."""
    if isinstance(error, sqlite3.Error):
        return catalog_file.explain(error, archive.storage.describe(catalog_file.NAME))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SparsebakError(
            f"{archive.storage.describe()} is full; what was stored so far is kept",
            "prune old sessions or free space, then run: sparsebak backup; it resumes from there",
        )
    hint = "nothing stored is lost; fix this and run: sparsebak backup"
    return SparsebakError(f"{archive.storage.describe()}: {error}", hint)

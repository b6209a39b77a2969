# SPDX-License-Identifier: GPL-2.0-or-later
"""What can make an end of a backup run, or of one session of it, in words."""

import errno
import sqlite3

from backup_vm import failures
from backup_vm.archive import catalog_file
from backup_vm.archive.archive import Archive
from backup_vm.archive.parameters import Parameters
from backup_vm.errors import AgentError, SparsebakError
from wire.chunks import NotAuthentic
from wire.messages import Offer
from wire.records import Clear, read_clear


def check_record(name: str, record: bytes, offer: Offer, archive: Parameters) -> None:
    """Raise AgentError unless a record says what was offered."""
    try:
        clear = read_clear(record)
    except NotAuthentic as error:
        raise AgentError(f"Extract {name}: {error}") from None
    offered = {
        one: getattr(offer, one)
        for one in Clear.fields
        if one not in ("format", "suite", "archive")
    }
    if clear != Clear(suite=archive.suite, archive=archive.archive, **offered):
        raise AgentError(f"Extract {name}: the record is not the one of the session offered")


def explained(error: OSError | sqlite3.Error, archive: Archive) -> SparsebakError:
    """What made an end of a run, in one line."""
    if isinstance(error, sqlite3.Error):
        place = archive.storage.workspace.describe(catalog_file.NAME)
        return catalog_file.explain(error, place, archive.storage.workspace)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SparsebakError(
            f"{archive.storage.describe()} is full; what was stored so far is kept",
            "prune old sessions or free space, then run: sparsebak backup; it resumes from there",
        )
    hint = failures.hint(error) or "nothing stored is lost; fix this and run: sparsebak backup"
    return SparsebakError(f"{archive.storage.describe()}: {failures.text(error)}", hint)

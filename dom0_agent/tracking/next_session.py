# SPDX-License-Identifier: GPL-2.0-or-later
"""The session that comes next: its number, its time, and whether it builds on the one before."""

import os
import time as clock

from dom0_agent.keyring import ArchiveKey
from dom0_agent.log import WARNING, log
from dom0_agent.tracking.committing import opened_ids, prove
from dom0_agent.tracking.progress import ArchiveProgress, Pending
from dom0_agent.tracking.state import State, VolumeState
from wire.messages import Request
from wire.status import Code, Refused

CLOCK_SLACK = 600
"""Seconds by which the time that a caller proposes for its run may differ from dom0's clock."""


def next_session(
    store: VolumeState,
    state: State,
    progress: ArchiveProgress,
    archive: ArchiveKey,
    request: Request,
    dedup_domain: bytes,
) -> Pending:
    """The session of the base that was just taken. Its number and time go up with every session
    begun, whatever becomes of it.
    """
    full = not _builds_on(store, progress, archive, request, dedup_domain.hex())
    session = os.urandom(16).hex()
    progress.mark_time = _session_time(progress.mark_time, request.time)
    progress.mark = max(progress.mark, request.number) + 1
    return Pending(
        session=session,
        snapshot=state.sequence,
        sequence=progress.mark,
        time=progress.mark_time,
        size=state.base_size,
        full=full,
        dedup_domain=dedup_domain.hex(),
        map=progress.map,
        log=f"{archive.id.hex()}.{session}.log",
    )


def _builds_on(
    store: VolumeState,
    progress: ArchiveProgress,
    archive: ArchiveKey,
    request: Request,
    dedup_domain: str,
) -> bool:
    """Whether a session can build on the committed one: both sides have it, and the ids are
    its.
    """
    committed = progress.committed
    if committed is None:
        return False
    if committed.session != request.session.hex():
        reason = "the archive's newest session is not the one committed here"
    elif committed.dedup_domain != dedup_domain:  # no id or key of the one serves the other
        reason = "the volume is in another deduplication domain now"
    else:
        with opened_ids(store, progress, archive, dedup_domain) as ids:
            if prove(ids, progress, archive):
                return True
        reason = "the chunk ids kept here are not those of the session committed"
    log(WARNING, f"{store.name}: {reason}; full session")
    return False


def _session_time(last: int, untrusted_time: int) -> int:
    """Unix seconds: the run's time as the caller proposes it, if near to now, else now; never
    ``last``, an earlier one's. Refused for so many that their times run ahead of the clock.

    Later than that, for sessions are named by their times: a caller must not get two of one name
    sealed. Only where the earlier one is further ahead than callers get (dom0's clock was wrong),
    time goes back.
    """
    # A run's volumes share one time, by which a user names the moment; dom0 takes it from the
    # caller, who alone knows what belongs to a run, but only near its own clock.
    now = int(clock.time())
    time = untrusted_time if abs(untrusted_time - now) <= CLOCK_SLACK else now
    furthest = now + 2 * CLOCK_SLACK
    if not time <= last <= furthest:
        return time
    if last == furthest:
        raise Refused(Code.BUSY, "sessions were begun faster than the clock goes, for too long")
    return last + 1

# SPDX-License-Identifier: GPL-2.0-or-later
"""What snapshots hold of their storage: for ``status``, no call asks."""

import os

from common.durable import closing_fd
from dom0_agent.sources import Source, fiemap, programs
from dom0_agent.sources.directory import DirectorySource
from dom0_agent.sources.files import failed
from dom0_agent.sources.lvm_thin import LvmThinSource
from dom0_agent.sources.reflink import ReflinkSource
from dom0_agent.sources.thin_pool import ThinPool
from dom0_agent.sources.zfs import ZfsSource

_SHOWN = 1 << 17
"""Extents looked at to say what a file holds alone."""


def held(source: Source) -> int:
    """Bytes of storage that snapshots of ours hold, as far as the storage can tell cheaply."""
    if isinstance(source, LvmThinSource):
        snapshots = source.pool.named(source.prefix)
        alone = _alone_in_pool(source.pool) if snapshots else {}
        return sum(alone.get(snapshot.thin_id or 0, 0) for snapshot in snapshots)
    if isinstance(source, ZfsSource):
        return source.held()
    if not isinstance(source, DirectorySource):
        raise TypeError(source)
    measure = _alone if isinstance(source, ReflinkSource) else _stored
    found = 0
    for number in source.snapshots():
        with closing_fd(source.open(number)) as fd:
            try:
                found += measure(fd)
            except OSError as error:
                raise failed(f"{source.name}: cannot look at its snapshots", error) from None
    return found


def _stored(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def _alone(fd: int) -> int:
    """Bytes of a file that no other file shares; of one in very many pieces, of as much as is
    looked at.
    """
    found = looked = 0
    for extents in fiemap.records(fd, os.fstat(fd).st_size):
        found += sum(span for _, _, span, _, flags, _ in extents if not flags & fiemap.SHARED)
        looked += len(extents)
        if looked >= _SHOWN:
            break
    return found


def _alone_in_pool(pool: ThinPool) -> dict[int, int]:
    """Bytes that only this one holds, by thin id."""
    with pool.metadata() as device:
        fields = ("-m", "--no-headers", "-o", "DEV,EXCLUSIVE_BLOCKS")
        lines = programs.run("thin_ls", *fields, device)
    block = pool.itself().block
    return {
        int(thin_id): int(blocks) * block
        for thin_id, blocks in (line.split() for line in lines.splitlines() if line)
    }

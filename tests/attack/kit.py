# SPDX-License-Identifier: GPL-2.0-or-later
"""A malicious backup VM: speaks every service in raw bytes, and looks afterwards whether anything
in dom0 has changed.
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from backup_vm.jobs.reading import sealed_chunks
from backup_vm.volumes import stored_volumes
from common.text import session_name
from dom0_agent.config import load
from dom0_agent.keyring import Keyring
from dom0_agent.rpc import dispatch
from tests.kit import Site
from wire.chunks import ID_SIZE, ZERO_ID, NotAuthentic
from wire.merkle import PAGE_IDS
from wire.messages import END, HEADER, HEADER_SIZE, KIND_STATUS, LENGTH, Request, Status
from wire.records import RECORD_SIZE, read_clear
from wire.status import Code
from wire.stream import Reader

PATIENCE = 60.0
"""Seconds that no refused call may take."""


@dataclass
class Stream:
    """What Restore and Verify are sent, in parts that can be put together in any way."""

    record: bytes
    ids: list[bytes]
    sealed: dict[int, bytes]
    end: bytes = END

    def parts(self) -> list[bytes]:
        """The parts in order: record, all ids, then page by page ids, lengths and chunks, and the
        end mark.
        """
        out = [self.record, *self._pages()]
        for first, page in zip(range(0, len(self.ids), PAGE_IDS), self._pages(), strict=True):
            out.append(page)
            for number in range(first, min(first + PAGE_IDS, len(self.ids))):
                if self.ids[number] != ZERO_ID:
                    out += [LENGTH.pack(len(self.sealed[number])), self.sealed[number]]
        return [*out, self.end]

    def _pages(self) -> list[bytes]:
        return [b"".join(self.ids[at : at + PAGE_IDS]) for at in range(0, len(self.ids), PAGE_IDS)]

    def to_bytes(self) -> bytes:
        return b"".join(self.parts())

    def but(self, **changes: object) -> "Stream":
        """A copy with something else in it."""
        return replace(replace(self, ids=list(self.ids), sealed=dict(self.sealed)), **changes)  # type: ignore[arg-type]

    @property
    def data(self) -> list[int]:
        """Numbers of the chunks with data."""
        return [number for number, chunk_id in enumerate(self.ids) if chunk_id != ZERO_ID]


def named(raw: bytes) -> str:
    """The session that a record is of, or seems to be."""
    try:
        return session_name(read_clear(raw[:RECORD_SIZE]).time)
    except NotAuthentic:
        return "20260101-000000"


class Attacker:
    """One that owns the archive, knows the format, and has no key."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.log: list[str] = []

    def archive_id(self, label: str = "tests") -> bytes:
        found = Keyring(load(self.site.config).state_dir).by_label(label)
        assert found is not None
        return found.id

    def request(
        self, session: bytes = bytes(16), number: int = 0, label: str = "tests", **fields: int
    ) -> bytes:
        return Request(
            archive=self.archive_id(label), session=session, number=number, **fields
        ).build()

    def stream(self, session: int = -1, name: str = "work/private") -> Stream:
        """A session of the archive, as it is."""
        with self.site.open() as archive:
            named = next(
                v for v in stored_volumes(archive, self.site.keys(archive), {}) if v.name == name
            )
            found = named.sessions[session]
            image = archive.image(list(named.sessions), found)
            ids, sealed = [], {}
            for page, chunks in sealed_chunks(archive, image, name):
                ids += page
                sealed |= {chunk.number: bytes(chunk.untrusted_data) for chunk in chunks}
        assert all(len(one) == ID_SIZE for one in ids)
        return Stream(found.record, ids, sealed)

    def call(
        self,
        name: str,
        sent: bytes | Reader,
        target: str | None = "work",
        argument: str = "private",
    ) -> Status:
        """How a call ends; see frames."""
        return Status.parse(self.frames(name, sent, target, argument)[-1][1])

    def frames(
        self,
        name: str,
        sent: bytes | Reader,
        target: str | None = "work",
        argument: str = "private",
    ) -> list[tuple[int, bytes]]:
        """Restore is asked for with the argument that what is sent needs, unless another is
        given.
        """
        if (name, argument) == ("Restore", "private"):
            head = sent[Request.length() :] if isinstance(sent, bytes) else self.stream().record
            argument = f"{target or 'dom0'}+private+{named(head)}+older"
        environ = {"QREXEC_REMOTE_DOMAIN": "backup-vm", "QREXEC_SERVICE_ARGUMENT": argument}
        if target is None:
            environ |= {
                "QREXEC_REQUESTED_TARGET_TYPE": "keyword",
                "QREXEC_REQUESTED_TARGET_KEYWORD": "adminvm",
            }
        else:
            environ |= {"QREXEC_REQUESTED_TARGET_TYPE": "name", "QREXEC_REQUESTED_TARGET": target}
        out = io.BytesIO()
        stdin = io.BytesIO(sent) if isinstance(sent, bytes) else sent
        start = time.monotonic()
        dispatch.run(name, environ, self.site.config, stdin, out)
        assert time.monotonic() - start < PATIENCE
        raw, frames = out.getvalue(), []
        while raw:
            kind, length = HEADER.unpack(raw[:HEADER_SIZE])
            frames.append((kind, raw[HEADER_SIZE : HEADER_SIZE + length]))
            raw = raw[HEADER_SIZE + length :]
        assert [kind for kind, _ in frames].index(KIND_STATUS) == len(frames) - 1
        return frames

    def everything(self) -> dict[str, bytes]:
        """All that dom0 has: volumes, snapshots, state."""
        files = [
            p
            for folder in (self.site.pool, self.site.state)
            for p in folder.rglob("*")
            if p.is_file() and p.name != "lock"
        ]
        return {str(p): p.read_bytes() for p in files}

    def refused(self, action: Callable[[], Status], *codes: Code) -> Status:
        """Do something that must be refused with one of the codes and change nothing."""
        before = self.everything()
        status = action()
        assert Code(status.code) in codes, Code(status.code)
        assert self.everything() == before
        return status

    def restore(
        self,
        stream: Stream | bytes,
        target: str = "work",
        argument: str = "private",
        older: bool = True,
    ) -> Status:
        """With the very argument that the stream would need, if it can be taken from it."""
        raw = stream if isinstance(stream, bytes) else stream.to_bytes()
        argument = f"{target}+{argument}+{named(raw)}{'+older' if older else ''}"
        return self.call("Restore", self.request() + raw, target, argument)

    def verify(self, stream: Stream | bytes) -> Status:
        raw = stream if isinstance(stream, bytes) else stream.to_bytes()
        return self.call("Verify", self.request() + raw, None, "")

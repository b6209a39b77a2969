# SPDX-License-Identifier: GPL-2.0-or-later
"""What is fuzzed: every parser of bytes from the other side, in dom0 and in the archive's readers.
One function a target.

A target takes bytes and raises nothing, except an error that its parser is documented to raise,
which it swallows here. Seeds are real: a site is made, and what crosses and what is stored is taken
from it.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from backup_vm.agent.call import Reply
from backup_vm.agent.transport import Connection
from backup_vm.archive import notes, packs, parameters, partial, sessions
from backup_vm.archive.format import ExportedFile, PackFile, PartialFile, SessionFile
from backup_vm.archive.inspection import inspect, kind_of
from backup_vm.archive.walk import Ends
from backup_vm.errors import SparsebakError
from backup_vm.jobs import export
from backup_vm.terminal.progress import Progress
from dom0_agent.admin import adoption, granting
from dom0_agent.admin.settings.document import QubeSettings, from_bytes
from dom0_agent.bitmap import Bitmap, BitmapFile
from dom0_agent.config import load
from dom0_agent.keyring import Keyring
from dom0_agent.rpc import heads
from dom0_agent.rpc.heads import SERVICES
from dom0_agent.rpc.receiving import read_record, receive
from dom0_agent.sources import thin_xml
from tests.fuzz import images
from tests.fuzz.world import (
    granted,
    opened,
    real_exported,
    real_grant,
    real_keys_file,
    real_records,
    real_reply,
    world,
)
from tests.kit import GRAIN, PASSPHRASE
from tests.mutation import forms
from wire import messages
from wire.grants import GRANT_MAGIC, BadGrant, Grant, GrantFile
from wire.layout import Structure
from wire.names import BadName, parse_volume_name
from wire.restore import RestoreStream
from wire.slots import BadRecoveryKey, parse_recovery
from wire.status import Refused

Target = Callable[[bytes], None]


def request(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        messages.Request.parse(data)


def restore_stream(data: bytes) -> None:
    """A whole Restore, without a volume to write to."""
    (archive,) = Keyring(load(world().site.config).state_dir)
    stream = io.BytesIO(data)
    with contextlib.suppress(Refused, EOFError):
        receive(stream, archive, read_record(stream, archive), None, 1)


def keys_file(data: bytes) -> None:
    path = world().site.root / "keys"
    path.write_bytes(data)
    with contextlib.suppress(Refused):
        adoption.read(path)


def grant(data: bytes) -> None:
    """A grant, with its digest made right, for whoever hands it on can do that, too; anything that
    does not begin as one is what a backup VM gives when dom0 asks for records.
    """
    if data[: len(GRANT_MAGIC)] == GRANT_MAGIC:
        body = data[:-32]
        with contextlib.suppress(BadGrant):
            found = Grant.parse(body + hashlib.blake2b(body, digest_size=32).digest())
            assert found.build()[:-32] == body
    else:
        with contextlib.suppress(Refused):
            granting.make(granted(), granting.read_records(io.BytesIO(data), "it"), (), True)


def settings(data: bytes) -> None:
    with contextlib.suppress(Refused):
        from_bytes(data).to_bytes()


def bitmap(data: bytes) -> None:
    found = Bitmap.from_bytes(data)
    if found is not None:
        list(found.runs(2, 1 << 20))


def thin_delta(data: bytes) -> None:
    read, write = os.pipe()
    os.write(write, data[:60_000])
    os.close(write)
    try:
        with contextlib.suppress(Refused):
            list(thin_xml.ranges(read, "thin_delta"))
    finally:
        os.close(read)


def names(data: bytes) -> None:
    with contextlib.suppress(BadName):
        parse_volume_name(data.decode("utf-8", "replace"))
    with contextlib.suppress(BadRecoveryKey):
        parse_recovery(data.decode("utf-8", "replace"))


class _Process:
    def __init__(self, data: bytes) -> None:
        self.stdout, self.stdin = io.BytesIO(data), None

    def wait(self, timeout: float | None = None) -> int:
        return 1


def reply(data: bytes) -> None:
    """What the manager reads from an agent."""
    answer = Reply("fuzz", Connection(_Process(data), None), 1 << 16)  # type: ignore[arg-type]
    kinds = {
        kind.KIND: kind
        for kind in (
            messages.VolumeEntry,
            messages.ArchiveEntry,
            messages.Offer,
            messages.Monitored,
        )
    }
    with contextlib.suppress(SparsebakError):
        for kind, payload in answer.frames():
            if kind in kinds:
                answer.parsed(kinds[kind], payload)


def archive_toml(data: bytes) -> None:
    """With its checksum made right: a disk can do that, too."""
    body = data.rpartition(b"checksum = ")[0] or data
    digest = hashlib.blake2b(body, digest_size=16).hexdigest()
    _scratch("archive.toml", body + f'checksum = "{digest}"\n'.encode())
    with contextlib.suppress(SparsebakError):
        parameters.load(world().scratch)


def session(data: bytes) -> None:
    body = data[:-32]
    name = "x/0000000001-00000000000000000000000000000000.session"
    _scratch(name, body + hashlib.blake2b(body, digest_size=32).digest())
    with contextlib.suppress(SparsebakError):
        found = sessions.load(world().scratch, name)
        assert found.name
        sessions.check(world().scratch, found)
        sessions.columns(world().scratch, found)


def pack(data: bytes) -> None:
    _scratch("x/0.pack", data)
    with contextlib.suppress(SparsebakError):
        packs.read_index(world().scratch, "x/0.pack", world().attacker.archive_id())
    with contextlib.suppress(SparsebakError):
        list(packs.scan(world().scratch, "x/0.pack", GRAIN))


def partial_session(data: bytes) -> None:
    _scratch("x/0.partial", data)
    with contextlib.suppress(SparsebakError):
        found = partial.Partial.load(world().scratch, "x/0.partial")
        if found is not None:
            list(found.ids())
            found.close()


def exported(data: bytes) -> None:
    """With its digest made right: whoever writes a file can do that, too."""
    body = data[:-32]
    stream = io.BytesIO(body + hashlib.blake2b(body, digest_size=32).digest())
    with contextlib.suppress(SparsebakError):
        export.prove(opened(), stream, Path("exported"), Progress(), None)


def tags_and_notes(data: bytes) -> None:
    body = data.split(b"\n")[0]
    _scratch(
        notes.NAME,
        body + b"\n" + hashlib.blake2b(body, digest_size=16).hexdigest().encode() + b"\n",
    )
    with contextlib.suppress(SparsebakError):
        notes.load(world().scratch)


def connection(data: bytes) -> None:
    """The beginning of a connection to the resident agent."""
    found = heads.parse_head(data.partition(b"\0")[0][: heads.LONGEST])
    assert found is None or found.service in SERVICES


def inspected(data: bytes) -> None:
    """Any file, shown field by field: of the kind that it begins as, or else a partial session."""
    name = "x/file.session" if data[:2] == b"SB" else "x/file.partial"
    _scratch(name, data)
    storage = world().scratch
    with contextlib.suppress(SparsebakError, Ends):
        for field in inspect(storage, name, kind_of(storage, name), True, lambda _: None):
            assert field.at + field.size <= len(data)


def image(data: bytes) -> None:
    """An image that is zeros apart from some sectors: all that readers say of files in it."""
    images.read(data)


def _scratch(name: str, data: bytes) -> None:
    world().scratch.local(name).write_bytes(data)


_DOM0 = (request, restore_stream, keys_file, settings, bitmap, thin_delta, names)
_ALSO = (connection, grant, image)
_VM = (*(reply, archive_toml, session, pack, partial_session, exported, tags_and_notes, inspected),)
TARGETS: dict[str, Target] = {target.__name__: target for target in (*_DOM0, *_ALSO, *_VM)}


def seeds(name: str) -> Iterable[bytes]:
    """Real inputs of a target."""
    site, attacker = world().site, world().attacker
    found = {
        "request": lambda: [attacker.request()],
        "restore_stream": lambda: [attacker.stream().to_bytes(), attacker.stream().record],
        "keys_file": lambda: [real_keys_file(site)],
        "grant": lambda: [real_grant(), real_records()],
        "settings": lambda: [
            QubeSettings(
                "work", "AppVM", "red", "fedora", None, {"memory": 400}, {"a": "1"}, ["t"]
            ).to_bytes()
        ],
        "bitmap": lambda: [Bitmap.everything(1 << 24).to_bytes()],
        "thin_delta": lambda: [
            (
                b'<superblock data_block_size="128"><diff left="1" right="2"><same begin="0"'
                b' length="9"/><different begin="9" length="3"/></diff></superblock>'
            ),
            (
                b'<superblock data_block_size="128"><device dev_id="1"><single_mapping'
                b' origin_block="3" data_block="9" time="0"/><range_mapping origin_begin="4"'
                b' data_begin="1" length="4" time="0"/></device></superblock>'
            ),
        ],
        "names": lambda: [b"work/private", b"AAAAA-BBBBB", PASSPHRASE],
        "reply": lambda: [real_reply(attacker)],
        "archive_toml": lambda: [(site.archive / "archive.toml").read_bytes()],
        "session": lambda: [path.read_bytes() for path in site.archive.rglob("*.session")],
        "pack": lambda: [path.read_bytes() for path in site.archive.rglob("*.pack")],
        "exported": lambda: [real_exported()],
        "tags_and_notes": lambda: [
            b'{"format": 2, "sessions": {"00": {"tags": ["a"], "note": "b"}}, "verified": {},'
            b' "scrubbed": [1, true]}'
        ],
        "connection": lambda: [
            b"sparsebak.Snapshot+private backup-vm name work\0rest",
            b"sparsebak.List+ vm keyword adminvm\0",
        ],
        "partial_session": lambda: [bytes(messages.Offer.length() + 100)],
        "image": images.seeds,
        "inspected": lambda: [
            *(raw for name in ("session", "pack", "exported") for raw in seeds(name)),
            bytes(messages.Offer.length() + 100),
        ],
    }
    return found[name]()


DECLARED: dict[str, type[Structure]] = {
    "request": messages.Request,
    "restore_stream": RestoreStream,
    "reply": messages.ReplyStream,
    "bitmap": BitmapFile,
    "session": SessionFile,
    "pack": PackFile,
    "partial_session": PartialFile,
    "exported": ExportedFile,
    "grant": GrantFile,
}
"""Targets whose input is declared field by field."""


def at_fields(name: str) -> Iterable[bytes]:
    """Real inputs of a target, each of their fields at its bounds, and cut at each."""
    if name not in DECLARED:
        return
    for seed in seeds(name):
        fields = forms.fields_of(DECLARED[name], seed)
        for change in (*forms.in_fields(seed, fields, None), *forms.in_length(seed, fields, None)):
            yield change.raw

# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in a file of an archive, field by field, for ``sparsebak inspect``.

Binary files are walked over as they are declared; of the others (TOML, JSON, SQLite) fields have no
offset. Memory does not grow with a file. Everything here may be hostile: it is shown, and nothing
is done with it.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from backup_vm.archive import (
    catalog_file,
    name_index,
    naming,
    notes,
    packs,
    parameters,
    partial,
    reserve,
)
from backup_vm.archive.catalog_base import TABLES, CatalogBase
from backup_vm.archive.damage import damage
from backup_vm.archive.format import (
    DIGEST_SIZE,
    EXPORT_MAGIC,
    FOOTER_SIZE,
    PACK_MAGIC,
    PARITY_MAGIC,
    SESSION_ENTRY_SIZE,
    SESSION_MAGIC,
    ExportedFile,
    PackFile,
    ParityFile,
    PartialFile,
    SessionFile,
    pack_numbers,
)
from backup_vm.archive.names_format import NAMES_MAGIC, NamesFile
from backup_vm.archive.storage import LOCK, WANTED, Files, Storage, Workspace
from backup_vm.archive.walk import Ends, Field, Read, walk
from backup_vm.errors import DamagedError, SparsebakError
from wire.chunks import Keys, NotAuthentic
from wire.layout import Structure
from wire.records import RECORD_SIZE, Record, Secret, open_record
from wire.slots import Slot

NOWHERE = -1
"""``at`` of a field without an offset."""
_BINARY: dict[str, tuple[type[Structure], bytes, str]] = {
    "session": (SessionFile, SESSION_MAGIC, ".session"),
    "index of names": (NamesFile, NAMES_MAGIC, name_index.SUFFIX),
    "pack": (PackFile, PACK_MAGIC, packs.SUFFIX),
    "parity": (ParityFile, PARITY_MAGIC, ".parity"),
    "exported session": (ExportedFile, EXPORT_MAGIC, ".sbx"),
    "partial session": (PartialFile, b"", partial.SUFFIX),
    "unfinished session": (PartialFile, b"", partial.UNFINISHED),
}
_NAMED = {
    parameters.NAME: "parameters",
    notes.NAME: "notes",
    catalog_file.NAME: "catalog",
    catalog_file.NAME + catalog_file.JOURNAL: "journal",
    LOCK: "lock",
    WANTED: "lock",
    notes.LOCK: "lock",
    reserve.NAME: "reserve",
}
_LONGEST = 32 << 20
"""Bytes of a file that is read whole."""
_LONGEST_LEASE = 4096
_BLOCK = 1 << 20
_DEEPEST = 8
"""Lists within lists that are shown one by one; ours have three."""
_ROW = re.compile(r"(chunks|groups)\[\d+\]\.(entry\.checksum|head\.digest)")


def files_of(storage: Storage, name: str) -> Files:
    """Where a file of that name is: among the archive's, or those of this machine alone."""
    return storage.workspace if naming.is_of_this_machine(name) else storage


def kind_of(storage: Storage, name: str) -> str:
    """What kind of file it is, by its first bytes or else its name; raise SparsebakError,
    DamagedError.
    """
    last, files = name.rpartition("/")[2], files_of(storage, name)
    with damage(files, name, ""):
        reader = files.reader(name)
        try:
            head = reader.read(0, 16)
        finally:
            reader.close()
    for kind, (_, magic, suffix) in _BINARY.items():
        if (magic and head.startswith(magic)) or (not magic and last.endswith(suffix)):
            return kind
    if last in _NAMED:
        return _NAMED[last]
    if re.fullmatch(r"(writer|notes)-\d+(-[0-9a-f]{16})?|probe-[0-9a-f]{16}", last):
        return "lease"
    for kind, (_, _, suffix) in _BINARY.items():
        if last.endswith(suffix):
            return kind
    if head == b"SQLite format 3\0":
        return "catalog"
    raise SparsebakError(
        f"{files.describe(name)} is no file of an archive, by its name and its first bytes",
        "name a file within an archive, or one that 'sparsebak export' wrote",
    )


def inspect(
    storage: Storage, name: str, kind: str, every: bool, keys: Callable[[bytes], Keys | None]
) -> Iterator[Field]:
    """The fields of a file, in order; Ends where the rest is malformed. Raises DamagedError,
    SparsebakError.

    ``every``: all rows, and all contents that a checksum covers. ``keys``: asked, with the
    archive.toml that the file has in it or nothing, for the key of what is sealed.
    """
    files = files_of(storage, name)
    if kind in _BINARY:
        with _reading(files, name) as (read, size):
            yield from _binary(_BINARY[kind][0], read, size, every, keys)
    elif kind == "catalog":
        yield from _catalog(storage.workspace, name, every)
    elif kind not in ("lock", "journal", "reserve"):
        with damage(files, name, ""):
            raw = files.read(name, _LONGEST_LEASE if kind == "lease" else _LONGEST)
        text = {"parameters": _parameters, "notes": _notes, "lease": _lease}[kind]
        yield from text(raw, files.describe(name), every)


@contextmanager
def _reading(files: Files, name: str) -> Iterator[tuple[Read, int]]:
    """A file's bytes; none where it cannot be read."""
    with damage(files, name, ""):
        size, reader = files.size(name), files.reader(name)
    try:
        yield lambda at, length: packs.read_or_nothing(reader, at, length), size
    finally:
        reader.close()


def _binary(
    structure: type[Structure],
    read: Read,
    size: int,
    every: bool,
    keys: Callable[[bytes], Keys | None],
) -> Iterator[Field]:
    values: dict[str, Field] = {}
    described = b""
    for field in walk(structure, read, size, every):
        if not field.rows and "[" not in field.name:
            values[field.name] = field
        if field.name == "parameters":
            described = read(field.at, field.size) if field.size <= _LONGEST else b""
        if field.name.startswith(("chunks[", "groups[")):
            values[field.name.rpartition(".")[2]] = field  # of the row that is being walked over
        yield _checked(structure, field, values, read, size, every)
        if field.name == "record.seal.tag":
            at = field.at + field.size - RECORD_SIZE
            yield from _sealed(read(at, RECORD_SIZE), keys(described))


def _sealed(untrusted_record: bytes, keys: Keys | None) -> Iterator[Field]:
    """What a record says under its seal, where there is a key."""
    if keys is None:
        return
    try:
        record: Record = open_record(untrusted_record, keys)
    except NotAuthentic as error:
        yield Field("record.seal", NOWHERE, 0, None, problem=f"cannot be opened: {error}")
        return
    text = Secret.coder().build(vars(record))
    for field in walk(Secret, lambda at, size: text[at : at + size], len(text)):
        yield replace(field, name=f"record.seal.text.{field.name}", at=NOWHERE)


def _checked(
    structure: type[Structure],
    field: Field,
    values: dict[str, Field],
    read: Read,
    size: int,
    every: bool,
) -> Field:
    """A field with what its checksum says of what it covers, as far as that is looked at."""
    found: bytes | None = None
    if field.name == "digest" and (structure is SessionFile or every):
        digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
        for at in range(0, size - DIGEST_SIZE, _BLOCK):
            digest.update(read(at, min(_BLOCK, size - DIGEST_SIZE - at)))
        found = digest.digest()
    elif field.name == "foot.checksum":
        index = _number(values["foot.index"])
        length = size - FOOTER_SIZE - index
        if 0 <= length <= _LONGEST:
            found = packs.checksum(read(index, length))
    elif _ROW.fullmatch(field.name) and structure is PackFile:
        sealed = read(field.at + field.size, min(_number(values["sealed_length"]), _LONGEST))
        found = packs.checksum(sealed)
        if not any(sealed[: packs.SALT]):
            return replace(field, meaning="of a chunk that was given back: a hole")
    elif _ROW.fullmatch(field.name):
        count = min(_number(values["count"]), _LONGEST // SESSION_ENTRY_SIZE)
        payload = read(field.at + field.size, count * SESSION_ENTRY_SIZE)
        covered = pack_numbers([_number(values["upto"])]) + payload
        found = hashlib.blake2b(covered, digest_size=field.size).digest()
    if found is None or found == field.value:
        return field
    return replace(field, problem="is not that of what it covers")


def _number(field: Field) -> int:
    return field.value if isinstance(field.value, int) else 0


def _parameters(raw: bytes, place: str, every: bool) -> Iterator[Field]:
    try:
        fields = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise Ends(f"it is not TOML: {error}") from None
    slots = fields.pop("slots", [])
    if "key" in fields:
        fields["key"] = "(the master key, which is not shown)"
    yield from _tree(fields, every)
    for number, slot in enumerate(slots if isinstance(slots, list) else []):
        yield from _slot(f"slots[{number}]", slot)
    try:
        parameters.parse(raw, place)
    except SparsebakError as error:
        raise Ends(str(error)) from None


def _slot(name: str, slot: Any) -> Iterator[Field]:
    try:
        raw = bytes.fromhex(slot)
        for field in walk(Slot, lambda at, size: raw[at : at + size], len(raw)):
            yield replace(field, name=f"{name}.{field.name}", at=NOWHERE)
    except (TypeError, ValueError, Ends):
        yield Field(name, NOWHERE, 0, str(slot)[:200], problem="is not a key slot")


def _notes(raw: bytes, place: str, every: bool) -> Iterator[Field]:
    try:
        fields = json.loads(raw.split(b"\n")[0])
    except (ValueError, RecursionError) as error:
        raise Ends(f"its first line is not JSON: {error}") from None
    yield from _tree(fields, every)
    check = raw.partition(b"\n")[2][:64].decode("ascii", "replace").strip()
    yield Field("checksum", NOWHERE, 0, check)
    try:
        notes.parse(raw, place)
    except DamagedError as error:
        raise Ends(str(error)) from None


def _lease(raw: bytes, place: str, every: bool) -> Iterator[Field]:
    if not raw.strip(b"\0"):
        return
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Ends(f"it is not JSON: {error}") from None
    yield from _tree(fields, every)


def _tree(tree: Any, every: bool, name: str = "", depth: int = 0) -> Iterator[Field]:
    """Values of lists and dictionaries; of each only the first and the last, unless every one is
    wanted.
    """
    if isinstance(tree, dict) and depth < _DEEPEST:
        rows = [(f"{name}.{key}" if name else str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and depth < _DEEPEST:
        rows = [(f"{name}[{number}]", value) for number, value in enumerate(tree)]
    else:
        value = tree
        if tree is None or isinstance(tree, bool):
            value = json.dumps(tree)
        elif type(tree) not in (int, str):
            value = str(tree)[:200]
        yield Field(name, NOWHERE, 0, value, number=type(tree) is int)
        return
    few = every or depth == 0 or len(rows) <= 2
    for number, (inner, value) in enumerate(rows):
        if few or number in (0, len(rows) - 1):
            yield from _tree(value, every, inner, depth + 1)
        elif number == 1:
            yield Field(name, NOWHERE, 0, None, rows=len(rows) - 2)


def _catalog(workspace: Workspace, name: str, every: bool) -> Iterator[Field]:
    import sqlite3

    place = workspace.describe(name)
    catalog: CatalogBase | None = None
    try:
        catalog = CatalogBase(workspace.database(name), read_only=True)
        if not catalog.ours():
            raise Ends("its schema is not that of a catalog of this version")
        for table in TABLES:
            yield from _rows(catalog, table, every)
        if every and not catalog.whole():  # which takes a while for a large one
            raise Ends("SQLite finds damage in it")
    except sqlite3.Error as error:
        if catalog_file.is_damage(error):
            raise Ends(f"{error}") from None
        raise catalog_file.explain(error, place, workspace) from None
    finally:
        if catalog is not None:
            catalog.close()


def _rows(catalog: CatalogBase, table: str, every: bool) -> Iterator[Field]:
    columns, count = catalog.columns(table), catalog.row_count(table)
    yield Field(table, NOWHERE, 0, count, "number of rows", True)
    shown = count if every else min(count, 2)
    for number, row in zip(range(shown), catalog.rows(table, every), strict=False):
        at = number if every or number == 0 else count - 1
        if at > 1 and not every and count > 2:
            yield Field(table, NOWHERE, 0, None, rows=count - 2)
        for column, value in zip(columns, row, strict=True):
            kept = value if isinstance(value, int | str | bytes) else str(value)
            yield Field(f"{table}[{at}].{column}", NOWHERE, 0, kept, number=type(value) is int)

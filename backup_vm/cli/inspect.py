# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak inspect``: what is in a file of an archive, field by field. Needs no key."""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import given, key_option
from backup_vm.errors import Exit, SparsebakError, UsageError
from backup_vm.paths import expanded
from backup_vm.terminal import output
from common.existing import exists
from common.override import override
from common.text import printable, session_name

if TYPE_CHECKING:
    from backup_vm.archive.parameters import Parameters
    from backup_vm.archive.storage import Storage
    from backup_vm.archive.walk import Field
    from wire.chunks import Keys

_WIDEST = 64
"""Bytes, and letters, of a value that are shown to people."""


def add_to(commands: Any) -> None:
    """Declare the command."""
    inspect = commands.add_parser(
        "inspect",
        help="show what is in a file of an archive, field by field",
        description=(
            "Shows any file of an archive, or an exported session, field by field: offset, length,"
            " name, value. Needs no key; with one also what is sealed in a session's record."
            " Reports what is damaged, and where."
        ),
    )
    inspect.add_argument(
        "file",
        type=given,
        metavar="FILE",
        help="the file; one that is not there: its name within the archive",
    )
    inspect.add_argument(
        "--all",
        action="store_true",
        help="all rows, not only the first and the last, and all checksums",
    )
    key_option(inspect)
    inspect.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.archive.inspection import files_of, kind_of
    from backup_vm.archive.walk import Ends

    context = Context(options)
    storage, name, folder = _place(context, options.file)
    files = files_of(storage, name)
    place = files.describe(name)
    if os.path.isdir(place):  # the user's, or the archive's own: nothing to be removed
        raise UsageError(f"{place} is a folder", "name a file of an archive")
    shown = _Json(place) if context.json else _Text(place)
    ends = ""
    with closing(storage):
        if not files.exists(name):
            raise UsageError(f"{place}: there is no such file")
        kind = kind_of(storage, name)
        shown.begin(kind, files.size(name))
        try:
            for field in _fields(context, storage, name, folder, kind):
                shown.put(field)
        except Ends as error:
            ends = str(error)
        except SparsebakError as error:
            shown.end(str(error))
            raise
        shown.end(ends)
    if ends:
        context.warn(f"{place} is damaged: {ends}")
    elif shown.problems:
        context.warn(f"{place} is damaged: {shown.problems[0]}")
    return Exit.DAMAGED if ends or shown.problems else Exit.OK


def _place(context: Context, file: str) -> "tuple[Storage, str, Path | None]":
    """Where a file is: its storage, its name there, and its folder if it is on this machine."""
    from backup_vm.archive.storage import open_storage
    from backup_vm.archive.storage.local import LocalStorage

    path = Path(expanded(file))
    if os.path.lexists(path) or path.is_absolute() or not context.has_archive():
        path = path.absolute()
        return LocalStorage(path.parent), path.name, path.parent
    return open_storage(context.location()), file, None


def _fields(
    context: Context, storage: "Storage", name: str, folder: Path | None, kind: str
) -> "Iterator[Field]":
    from backup_vm.archive.inspection import inspect

    def keys(described: bytes) -> "Keys | None":
        return _keys(context, _parameters(context, storage, folder, described))

    return inspect(storage, name, kind, context.options.all, keys)


def _parameters(
    context: Context, storage: "Storage", folder: Path | None, described: bytes
) -> "Parameters | None":
    """Of the archive that a file is of: in the file itself, above it, or named by --archive."""
    from backup_vm.archive import parameters
    from backup_vm.archive.storage import open_storage
    from backup_vm.archive.storage.local import LocalStorage

    if described:
        return parameters.parse(described, f"{parameters.NAME} in it")
    above = [folder, *folder.parents[:2]] if folder else []
    for one in above:
        if exists(one / parameters.NAME):
            return parameters.load(LocalStorage(one))
    if folder is None:
        return parameters.load(storage)
    if context.has_archive():
        with closing(open_storage(context.location())) as named:
            return parameters.load(named)
    return None


def _keys(context: Context, found: "Parameters | None") -> "Keys | None":
    """For what is sealed: with a passphrase, or of an open archive."""
    file: Path | None = context.options.passphrase_file
    if file is None:
        return found.keys() if found else None
    if found is None:
        raise UsageError("it is not known which archive this file is of: give --archive")
    from backup_vm.unsealing import read_passphrase

    return found.keys(read_passphrase(file))


class _Text:
    """Fields for people, a line each, as they come."""

    def __init__(self, place: str) -> None:
        self._place = place
        self.problems: list[str] = []

    def begin(self, kind: str, size: int) -> None:
        output.put(printable(f"{self._place}: {kind}, {size} bytes"))

    def put(self, field: "Field") -> None:
        if field.problem:
            self.problems.append(f"{field.name} {field.problem}")
        output.put(self._line(field))

    def _line(self, field: "Field") -> str:
        where = f"{field.at:>12} {field.size:>9}" if field.at >= 0 else " " * 22
        meaning = f"  ({field.meaning})" if field.meaning else ""
        problem = f"  DAMAGED: {field.problem}" if field.problem else ""
        return printable(f"{where}  {field.name:<32} {_shown(field)}{meaning}{problem}")

    def end(self, ends: str) -> None:
        if ends:
            output.put(printable(f"It ends here: {ends}"))


class _Json(_Text):
    """The same as one JSON object, written as it comes: a file may have millions of fields."""

    @override
    def begin(self, kind: str, size: int) -> None:
        head = {"file": self._place, "kind": kind, "size": size}
        output.put(f'{json.dumps(head)[:-1]}, "fields": [')
        self._separator = ""

    @override
    def _line(self, field: "Field") -> str:
        value = field.value.hex() if isinstance(field.value, bytes) else field.value
        data: dict[str, Any] = {
            "name": field.name,
            "offset": field.at if field.at >= 0 else None,
            "size": field.size if field.at >= 0 else None,
            "value": value,
        }
        data |= {"meaning": field.meaning} if field.meaning else {}
        data |= {"rows": field.rows} if field.rows else {}
        data |= {"problem": field.problem} if field.problem else {}
        line, self._separator = f"{self._separator}{json.dumps(data)}", ","
        return line

    @override
    def end(self, ends: str) -> None:
        rest = {"ends": ends or None, "ok": not ends and not self.problems}
        output.put(f"], {json.dumps(rest)[1:]}")


def _shown(field: "Field") -> str:
    """A value for people."""
    from backup_vm.archive.walk import shown
    from wire.layout import LAST_TIME

    value = field.value
    if field.rows:
        return f"... {field.rows} more: --all"
    if value is None:
        return f"... {field.size} bytes" if field.size else ""
    if isinstance(value, bytes):
        more = f"... {len(value)} bytes" if len(value) > _WIDEST else ""
        return shown(value[:_WIDEST] if more else value) + more
    if isinstance(value, str):
        return value if len(value) <= 4 * _WIDEST else f"{value[: 4 * _WIDEST]}..."
    return f"{value} {session_name(value)}" if field.time and value <= LAST_TIME else str(value)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of bytes in the docs, made from the declarations: ``make pages`` writes them.

A table is between two comments, the first of which names a structure: ``<!-- bytes of MODULE.NAME
-->``.
"""

import importlib
import re
from pathlib import Path
from typing import Any

import construct

from backup_vm.archive.walk import shown
from wire.declared import Time, bare, declaration, declared
from wire.layout import Structure

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = (DOCS / "format.md", DOCS / "protocol.md")
_TABLE = re.compile(r"<!-- bytes of ([\w.]+)\.(\w+) -->\n.*?<!-- end of bytes -->", re.S)
_PATH = re.compile(r"this(?:\['\w+'\])*\['(\w+)'\]")


def table(structure: type[Structure]) -> str:
    """Offset, size, type, name and meaning of each field."""
    lines = ["| offset | bytes | field | type | meaning |", "|---|---|---|---|---|"]
    at: int | None = 0
    foot = []
    for field in declaration(structure).subcons:
        kind = bare(field)
        from_end = isinstance(kind, construct.Pointer)
        kind = bare(kind.subcon) if from_end else kind
        size, fixed = _size(kind), _fixed(kind)
        where = "at the end" if from_end else "" if at is None else str(at)
        line = f"| {where} | {size} | `{field.name}` | {_type(kind)} | {_meaning(field, kind)} |"
        (foot if from_end else lines).append(line)
        if not from_end:
            at = None if at is None or fixed is None else at + fixed
    return "\n".join([*lines, *foot])


def _fixed(kind: construct.Construct) -> int | None:
    try:
        return int(kind.sizeof())
    except construct.SizeofError:
        return None


def _size(kind: construct.Construct) -> str:
    fixed = _fixed(kind)
    if isinstance(kind, construct.Array):
        row = _fixed(kind.subcon)
        return f"{_count(kind.count)} × {row}" if row else f"{_count(kind.count)}, each its own"
    if fixed is not None:
        return str(fixed)
    if isinstance(kind, construct.Bytes):
        return _count(kind.length)
    if isinstance(kind, construct.GreedyRange):
        row = _fixed(kind.subcon)
        return f"to the end, {row} each" if row else "to the end, each its own"
    return "its own"


def _count(count: Any) -> str:
    if isinstance(count, int):
        return str(count)
    if not isinstance(count, construct.expr.ExprMixin):
        return str(count.__doc__).rstrip(".").lower()
    return _PATH.sub(r"`\1`", str(count)).strip("()").replace(" - ", " − ").replace(" * ", " · ")


def _type(kind: construct.Construct) -> str:
    if isinstance(kind, construct.Array | construct.GreedyRange):
        return f"{_type(bare(kind.subcon))}, repeated"
    if isinstance(kind, construct.Struct):
        return "structure"
    if isinstance(kind, construct.Const):
        return "constant"
    if isinstance(kind, construct.StringEncoded):
        return "ASCII, filled up with zeros"
    return "time" if kind is Time else "bytes" if isinstance(kind, construct.Bytes) else "number"


def _meaning(field: construct.Construct, kind: construct.Construct) -> str:
    if isinstance(kind, construct.Const):
        raw = kind.build(None)
        text = shown(raw)
        if not isinstance(kind.value, bytes):
            return str(kind.value)
        return f"`{text}`"
    rows = kind.subcon if isinstance(kind, construct.Array | construct.GreedyRange) else kind
    words = field.docs or rows.docs or _summary(bare(rows))
    return " ".join(words.split()).replace("|", "\\|")


def _summary(kind: construct.Construct) -> str:
    """What the docstring of a structure says first."""
    found = declared(kind)
    words = " ".join((found.__doc__ or "").split()).partition(". ")[0] if found else ""
    return words.rstrip(".")[:1].lower() + words.rstrip(".")[1:]


def text(page: str) -> str:
    """A page with its tables as they must be."""
    return _TABLE.sub(_written, page)


def _written(found: re.Match[str]) -> str:
    module, name = found.groups()
    structure = getattr(importlib.import_module(module), name)
    return f"<!-- bytes of {module}.{name} -->\n{table(structure)}\n<!-- end of bytes -->"


def main() -> None:
    for page in PAGES:
        page.write_text(text(page.read_text()))


if __name__ == "__main__":
    main()

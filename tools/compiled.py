# SPDX-License-Identifier: GPL-2.0-or-later
"""The codes that structures are compiled to, made from their declarations: ``make pages`` writes
them.

A structure that says ``compiled=`` is compiled; see wire.layout.
"""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import construct

from wire.declared import Time, bare, declaration, is_constant
from wire.layout import TIME, Compiled, Structure

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "wire/compiled.py": (
        "wire.messages",
        "wire.records",
        "wire.slots",
        "wire.merkle",
        "wire.grants",
        "wire.reading",
    ),
    "backup_vm/archive/compiled.py": (
        "backup_vm.archive.format",
        "backup_vm.archive.names_format",
    ),
    "dom0_agent/compiled.py": (
        "dom0_agent.bitmap",
        "dom0_agent.kernel",
        "dom0_agent.tracking.chunk_ids",
        "dom0_agent.tracking.pending_log",
    ),
}
"""Files of codes, and the modules whose structures are in them."""


def structures(module: str) -> Iterator[type[Structure]]:
    """All of a module's own."""
    for one in vars(importlib.import_module(module)).values():
        if isinstance(one, type) and issubclass(one, Structure) and one.__module__ == module:
            yield one


def codes(structure: type[Structure]) -> dict[str, str | bytes]:
    """See wire.layout.Codes. Structures within this one are laid flat, under dotted names."""
    return dict(_codes(declaration(structure), ""))


def _codes(fields: construct.Struct, prefix: str) -> Iterator[tuple[str, str | bytes]]:
    for field in fields.subcons:
        kind, name = bare(field), prefix + field.name
        if isinstance(kind, construct.Struct):
            yield from _codes(kind, f"{name}.")
        elif is_constant(field):
            yield name, kind.build(None)
        elif kind is Time:
            yield name, TIME
        elif isinstance(kind, construct.StringEncoded):
            yield name, f"{kind.sizeof()}t"
        elif isinstance(kind, construct.Bytes):
            yield name, f"{kind.sizeof()}s"
        else:
            yield name, kind.fmtstr.removeprefix("<")


def table(path: str) -> dict[str, dict[str, str | bytes]]:
    """The codes that belong into a file."""
    return {
        one.__name__: codes(one)
        for module in MODULES[path]
        for one in structures(module)
        if one.compiled
    }


def main() -> None:
    # what is not in the files yet must not keep their modules from being imported
    Structure.coder = classmethod(lambda cls: Compiled(codes(cls)))  # type: ignore[assignment]
    for path in MODULES:
        text = (
            "# SPDX-License-Identifier: GPL-2.0-or-later\n"
            '"""What structures are compiled to, see wire.layout. Made from their declarations\n'
            'by "make pages": change those instead."""\n\n'
            "from wire.layout import Codes\n\n"
            f"COMPILED: dict[str, Codes] = {table(path)!r}\n"
        )
        (ROOT / path).write_text(text)
        subprocess.run([sys.executable, "-m", "ruff", "format", "-q", ROOT / path], check=True)


if __name__ == "__main__":
    main()

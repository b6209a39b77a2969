# SPDX-License-Identifier: GPL-2.0-or-later
"""From a structure's annotations to its declaration in construct. Imported only by what needs one:
see wire.layout.

A field is ``name: Annotated[type, construct * "meaning"]``. A constant belongs to the class:
``name: ClassVar[Annotated[type, Const(value)]]``. A structure in a structure is ``name: Other``.
Other annotations are no part of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, get_args, get_origin, get_type_hints

import construct
from construct import Construct, ExprValidator, Int64ul, PaddedString, Struct

from wire.layout import LAST_TIME, Structure

Time = ExprValidator(Int64ul, lambda seconds, _: seconds <= LAST_TIME)
"""8 bytes: Unix seconds, up to the end of the year 9999."""


def Text(size: int) -> Construct:  # noqa: N802 - named as construct names what it declares
    """ASCII of at most ``size`` bytes, filled up with zeros."""
    return PaddedString(size, "ascii")


_KNOWN: dict[type[Structure], Struct] = {}


def declaration(structure: type[Structure]) -> Struct:
    """A structure as construct's Struct of named fields, in order."""
    if structure not in _KNOWN:
        _KNOWN[structure] = Struct(*_fields(structure))
    return _KNOWN[structure]


of = declaration
"""The declaration, as annotations name it: ``of(Entry)[this.count]``."""


def _fields(structure: type[Structure]) -> Iterator[Construct]:
    names = {name: getattr(construct, name) for name in construct.__all__}
    names |= {"Time": Time, "Text": Text, "of": of}
    for name, hint in get_type_hints(structure, localns=names, include_extras=True).items():
        if get_origin(hint) is ClassVar:
            (hint,) = get_args(hint)
        declared = [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Construct)]
        if not declared and isinstance(hint, type) and issubclass(hint, Structure):
            declared = [declaration(hint)]
        yield from (name / one for one in declared)


def declared(struct: Construct) -> type[Structure] | None:
    """The structure whose declaration this is."""
    return next((one for one, known in _KNOWN.items() if known is struct), None)


def is_constant(field: Construct) -> bool:
    """Whether a field always has the same bytes."""
    return isinstance(bare(field), construct.Const)


def bare(field: Construct) -> Construct:
    """A field's construct without its name and meaning."""
    while isinstance(field, construct.Renamed):
        field = field.subcon
    return field

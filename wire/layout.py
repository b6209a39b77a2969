# SPDX-License-Identifier: GPL-2.0-or-later
"""Structures of fixed size, each declared once: a class whose annotations are declarations of the
library ``construct``.

    class Monitored(Message, compiled=COMPILED):
        changed: Annotated[int, Int64ul * "bytes that may have changed"]
        size: Annotated[int, Int64ul * "bytes of the volume"]

A module with structures begins with ``from __future__ import annotations``, which leaves
annotations as text until somebody asks for them (wire.declared): to import construct takes 20 ms, a
backup in which nothing has changed 110 in all.

What is built and parsed goes by the standard library's ``struct`` instead, with the codes in
``compiled``, so that no call, and nothing else in dom0, runs construct. Nobody writes those codes:
``make pages`` makes them from the declarations. Tests make them again and compare, and try both
ways on the same bytes. Numbers are little-endian and nothing is aligned.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, Self, dataclass_transform

LAST_TIME = 253_402_300_799
"""Unix seconds: the end of the year 9999, beyond which calendars fail. Later times are damage, or
meant to do some.
"""

TIME = "T"
"""Code of 8 bytes of Unix seconds, up to LAST_TIME."""

Codes = Mapping[str, str | bytes]
"""A structure's fields in order. Each is a code of ``struct`` ("B", "H", "I", "Q", "16s"), TIME,
"64t" for ASCII filled up with zeros, or the bytes of a constant. Numbers of a structure of the
kernel, in the machine's own order of bytes, have a "=" before them."""

_STRUCT = str.maketrans({"t": "s", TIME: "Q", "=": None})


class Compiled:
    """Builds and parses by ``struct``. Constants are checked, never asked for nor given back.

    ``size``: length in bytes.
    """

    def __init__(self, codes: Codes) -> None:
        self._codes = codes
        parts = (
            f"{len(code)}s" if isinstance(code, bytes) else code.translate(_STRUCT)
            for code in codes.values()
        )
        native = any(isinstance(code, str) and code.startswith("=") for code in codes.values())
        self._struct = struct.Struct(("=" if native else "<") + "".join(parts))
        self.size = self._struct.size

    def build(self, values: Mapping[str, Any]) -> bytes:
        """The structure as bytes; raise ValueError for a value that does not fit. Other values may
        stand among them.
        """
        packed = [
            code if isinstance(code, bytes) else _packed(name, code, values[name])
            for name, code in self._codes.items()
        ]
        try:
            return self._struct.pack(*packed)
        except struct.error as error:
            raise ValueError(str(error)) from None

    def parse(self, untrusted_raw: bytes) -> dict[str, Any]:
        """The values by name; raise ValueError for another length or constant, or a value that no
        field can have.
        """
        check_length(untrusted_raw, self.size)
        values: dict[str, Any] = {}
        for (name, code), value in zip(
            self._codes.items(), self._struct.unpack(untrusted_raw), strict=True
        ):
            if isinstance(code, bytes):
                if value != code:
                    raise ValueError(f"{name} is {value!r} and not {code!r}")
            elif code.endswith("t"):
                values[name] = _text(name, value)
            else:
                values[name] = _time(name, value) if code == TIME else value
        return values

    @property
    def row(self) -> struct.Struct:
        """The ``struct`` itself; ValueError unless it checks all that a Compiled does."""
        if any(isinstance(c, bytes) or c == TIME or c.endswith("t") for c in self._codes.values()):
            raise ValueError("a structure with a constant, a time or text is more than its struct")
        return self._struct


@dataclass_transform(frozen_default=True)
class Structure:
    """Base of the structures. Those that become objects take their values in the order of the
    fields, or by name, and never change; rows, of which there are millions, become none.

    They are to others what a frozen dataclass is, and none: to make a class one takes 0.3 ms, and
    to import what makes them 6, in each run and each call.

    ``compiled``: the Codes of the structures of its module, by their names. ``kw_only``: values are
    given by name alone.
    """

    compiled: ClassVar[bool] = False
    fields: ClassVar[tuple[str, ...]] = ()
    """Names of the values, in order: of all fields but constants."""
    _compiled: ClassVar[Compiled | None] = None
    _kw_only: ClassVar[bool] = False
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(
        cls, compiled: Mapping[str, Codes] | None = None, kw_only: bool = False
    ) -> None:
        codes = (compiled or {}).get(cls.__name__)
        cls.compiled = compiled is not None
        cls._compiled = None if codes is None else Compiled(codes)
        cls._kw_only = kw_only
        # As text, see the module: of a constant it begins with what says that it is the class's.
        hints = cls.__annotations__.items()
        own = [name for name, hint in hints if not hint.startswith("ClassVar")]
        bases = [base for base in cls.__bases__ if issubclass(base, Structure)]
        cls.fields = tuple(dict.fromkeys([*(n for base in bases for n in base.fields), *own]))
        cls._defaults = {name: value for base in bases for name, value in base._defaults.items()}
        cls._defaults |= {name: vars(cls)[name] for name in own if name in vars(cls)}

    def __init__(self, *values: Any, **named: Any) -> None:
        """Raises TypeError unless every field has one value, given or its own."""
        cls = type(self)
        given = {**dict(zip(cls.fields, values, strict=False)), **named}
        whole = {**cls._defaults, **given}
        if (
            len(given) != len(values) + len(named)
            or whole.keys() != set(cls.fields)
            or (values and cls._kw_only)
        ):
            raise TypeError(f"{cls.__name__} takes the fields {', '.join(cls.fields)}")
        vars(self).update({name: whole[name] for name in cls.fields})

    def replaced(self, **values: Any) -> Self:
        """A structure with other values of these fields."""
        return type(self)(**{**vars(self), **values})

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{name} of a structure never changes")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        values = (f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({', '.join(values)})"

    @classmethod
    def coder(cls) -> Compiled:
        """What builds and parses it; TypeError for one that only describes, and is not compiled."""
        if cls._compiled is None:
            raise TypeError(f"{cls.__name__} is not compiled")
        return cls._compiled

    @classmethod
    def row(cls) -> struct.Struct:
        """What packs and unpacks it as a tuple, many at once: for structures of numbers and bytes
        alone, compiled.
        """
        return cls.coder().row

    @classmethod
    def length(cls) -> int:
        """Length in bytes; fixed."""
        return cls.coder().size

    def build(self) -> bytes:
        """The structure as bytes; raise ValueError for a value that does not fit."""
        return self.coder().build(vars(self))

    @classmethod
    def parse(cls, untrusted_raw: bytes) -> Self:
        """Read exactly ``length()`` bytes; raise ValueError for another length or a value no field
        can have.
        """
        try:
            return cls(**cls.coder().parse(untrusted_raw))
        except ValueError as error:
            raise ValueError(f"{cls.__name__}: {error}") from None


def check_length(untrusted_raw: bytes, size: int) -> None:
    """Raise ValueError unless there are so many bytes."""
    if len(untrusted_raw) != size:
        raise ValueError(f"{len(untrusted_raw)} bytes where {size} belong")


def _packed(name: str, code: str, value: Any) -> Any:
    if not code.endswith(("s", "t")):
        return _time(name, value) if code == TIME else value
    size, data = int(code[:-1]), value.encode("ascii") if code.endswith("t") else value
    if len(data) > size or (code.endswith("s") and len(data) < size):
        raise ValueError(f"{name} has {len(data)} bytes, and its field {size}")
    return data


def _time(name: str, value: int) -> int:
    if value > LAST_TIME:
        raise ValueError(f"{name} is {value}, later than the year 9999")
    return value


def _text(name: str, value: bytes) -> str:
    try:
        return value.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not ASCII") from None

"""Structures of fixed size: each is declared once, field by field, and built and read by the
standard library's ``struct``.

Numbers are little-endian, nothing is aligned. A field is U8 to U64, TIME (8 bytes, Unix seconds up
to LAST_TIME), ``raw(bytes)``, ``text(bytes)`` (ASCII, filled up with zero bytes), or a constant,
given as the bytes it has. What does not fit its field is an error, both ways.
"""

import struct
from collections.abc import Mapping
from typing import Any

U8, U16, U32, U64 = "B", "H", "I", "Q"
TIME = "T"

LAST_TIME = 253_402_300_799
"""Unix seconds: the end of the year 9999, beyond which calendars fail. Later times are damage, or
meant to do some.
"""

_STRUCT = str.maketrans({"t": "s", TIME: U64})


def raw(size: int) -> str:
    """A field of exactly ``size`` bytes."""
    return f"{size}s"


def text(size: int) -> str:
    """A field of at most ``size`` ASCII characters."""
    return f"{size}t"


class Fields:
    """A structure. Constants are checked, and neither asked for nor given back."""

    def __init__(self, **kinds: str | bytes) -> None:
        self._kinds = kinds
        parts = (
            raw(len(kind)) if isinstance(kind, bytes) else kind.translate(_STRUCT)
            for kind in kinds.values()
        )
        self._struct = struct.Struct("<" + "".join(parts))
        self.size = self._struct.size
        """Length in bytes."""

    def build(self, values: Mapping[str, Any]) -> bytes:
        """The structure as bytes; raise ValueError for a value that does not fit. Other values may
        stand among them.
        """
        packed = [
            kind if isinstance(kind, bytes) else _packed(name, kind, values[name])
            for name, kind in self._kinds.items()
        ]
        try:
            return self._struct.pack(*packed)
        except struct.error as error:
            raise ValueError(str(error)) from None

    def parse(self, untrusted_raw: bytes) -> dict[str, Any]:
        """The values by name; raise ValueError for another length or constant, an impossible time,
        text that is not ASCII.
        """
        if len(untrusted_raw) != self.size:
            raise ValueError(f"{len(untrusted_raw)} bytes where {self.size} belong")
        values: dict[str, Any] = {}
        for (name, kind), value in zip(
            self._kinds.items(), self._struct.unpack(untrusted_raw), strict=True
        ):
            if isinstance(kind, bytes):
                if value != kind:
                    raise ValueError(f"{name} is {value!r} and not {kind!r}")
            elif kind.endswith("t"):
                values[name] = _text(name, value)
            else:
                values[name] = _time(name, value) if kind == TIME else value
        return values


def _packed(name: str, kind: str, value: Any) -> Any:
    if not kind.endswith(("s", "t")):
        return _time(name, value) if kind == TIME else value
    size, data = int(kind[:-1]), value.encode("ascii") if kind.endswith("t") else value
    if len(data) > size or (kind.endswith("s") and len(data) < size):
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

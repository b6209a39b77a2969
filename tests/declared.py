# SPDX-License-Identifier: GPL-2.0-or-later
"""Structures as construct builds and parses them: what compiled ones are held against."""

from collections.abc import Mapping
from typing import Any

from construct import ConstructError

from wire.declared import declaration, is_constant
from wire.layout import Structure, check_length


class Declared:
    """Builds and parses a structure of fixed size by its declaration; see wire.layout.Compiled."""

    def __init__(self, structure: type[Structure]) -> None:
        self._struct = declaration(structure)
        self._values = [one.name for one in self._struct.subcons if not is_constant(one)]
        self.size = int(self._struct.sizeof())

    def build(self, values: Mapping[str, Any]) -> bytes:
        """See Compiled."""
        try:
            return bytes(self._struct.build({**values}))
        except (ConstructError, UnicodeError) as error:
            raise ValueError(_line(error)) from None

    def parse(self, untrusted_raw: bytes) -> dict[str, Any]:
        """See Compiled."""
        check_length(untrusted_raw, self.size)
        try:
            found = self._struct.parse(untrusted_raw)
        except (ConstructError, UnicodeError) as error:
            raise ValueError(_line(error)) from None
        return {name: found[name] for name in self._values}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

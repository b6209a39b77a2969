# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes and shares as people write them: ``20G``, ``5%``."""

import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

Result = TypeVar("Result")

_SIZE = r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([KMGT]?)(?:i?B)?"
_LEAST = 0.01
_SHARE = r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%"


def setting(key: str, parse: Callable[[str], Result], text: str) -> Result:
    """What a setting's text stands for, by its parser; a ValueError names the setting."""
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def parse_size(text: str) -> int:
    """Bytes that ``20G`` or ``1.5MiB`` stand for; raise ValueError."""
    found = re.fullmatch(_SIZE, text)
    if found is None:
        raise ValueError(f"{text!r} is not a size such as 20G")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


class Part(NamedTuple):
    """A part of something: a share from above 0 to 1, or a number of bytes from 1 on."""

    share: float = 0.0
    size: int = 0

    def of(self, total: int) -> float:
        """Bytes of a whole of so many that are meant."""
        return self.size or self.share * total


def parse_part(text: str) -> Part:
    """The part that ``5%`` or ``20G`` stand for; raise ValueError."""
    if found := re.fullmatch(_SHARE, text):
        share = float(found[1]) / 100
        if not 0 < share <= 1:
            raise ValueError(f"{text!r} is not a share from above 0% up to 100%")
        return Part(share=share)
    size = parse_size(text)
    if size < 1:
        raise ValueError(f"{text!r} is nothing")
    return Part(size=size)


def parse_share(text: str) -> float:
    """The share that ``10%`` stands for, from 1% to 100%; raise ValueError."""
    if not re.fullmatch(_SHARE, text) or (share := parse_part(text).share) < _LEAST:
        raise ValueError(f"{text!r} is not a share from 1% to 100%")
    return share


def days_text(seconds: float) -> str:
    """``30 days``, for a length of time."""
    days = f"{seconds / 86400:.3g}"
    return f"{days} day{'' if days == '1' else 's'}"

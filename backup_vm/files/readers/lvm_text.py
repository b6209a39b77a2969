# SPDX-License-Identifier: GPL-2.0-or-later
"""The text that describes a group of LVM: sections within sections, of values and lists of them."""

import re
from collections.abc import Iterator

from backup_vm.files.readers.source import Malformed

Value = str | int | list[str | int]
Section = dict[str, "Value | Section"]
_DEEPEST = 8
_LONGEST_NUMBER = 20
_TOKEN = re.compile(
    r'\s+|#[^\n]*|(?P<text>"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z0-9_.+-]+)|(?P<mark>[{}\[\]=,])',
    re.ASCII | re.DOTALL,
)


def parsed(raw: bytes) -> Section:
    """What a text says. Raises Malformed."""
    tokens = _tokens(raw.rstrip(b"\0").decode("latin-1"))
    stack: list[Section] = [{}]
    for token in tokens:
        if token == "}":  # noqa: S105  a mark
            stack.pop()
            if not stack:
                raise _damaged()
            continue
        mark = next(tokens, "")
        if mark == "{":
            below: Section = {}
            stack[-1][token] = below
            stack.append(below)
            if len(stack) > _DEEPEST:
                raise _damaged()
        elif mark == "=":
            stack[-1][token] = _value(next(tokens, ""), tokens)
        else:
            raise _damaged()
    if len(stack) != 1:
        raise _damaged()
    return stack[0]


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _damaged()
        at = found.end()
        if found.lastgroup:
            yield found[0]


def _value(token: str, tokens: Iterator[str]) -> Value:
    if token != "[":  # noqa: S105
        return _single(token)
    row: list[str | int] = []
    for one in tokens:
        if one == "]":
            return row
        if one != ",":
            row.append(_single(one))
    raise _damaged()


def _single(token: str) -> str | int:
    if token[:1] == '"':
        return re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)
    if re.fullmatch(r"-?[0-9]+", token) and len(token) <= _LONGEST_NUMBER:
        return int(token)
    if re.fullmatch(r"[0-9.+-]+", token):
        return token  # a fraction, of which nothing is read
    raise _damaged()


def _damaged() -> Malformed:
    return Malformed("what describes a group of LVM is damaged")

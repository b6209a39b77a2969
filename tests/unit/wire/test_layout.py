# SPDX-License-Identifier: GPL-2.0-or-later
"""Structures, as they are declared and as they are compiled: what is built is read back, what does
not fit is refused.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.text import session_name
from tests.declared import Declared
from tools.compiled import codes
from wire.layout import LAST_TIME, Compiled, Structure

if TYPE_CHECKING:
    from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul

    from wire.declared import Text, Time


class All(Structure):
    magic: ClassVar[Annotated[bytes, Const(b"MAGC")]]
    a: Annotated[int, Int8ul]
    b: Annotated[int, Int16ul]
    c: Annotated[int, Int32ul]
    d: Annotated[int, Int64ul]
    key: Annotated[bytes, Bytes(5)]
    name: Annotated[str, Text(9)]
    end: ClassVar[Annotated[bytes, Const(b"\0\1")]]
    other: ClassVar[int] = 3


class Times(Structure):
    time: Annotated[int, Time]


Coder = Declared | Compiled
All._compiled = Compiled(codes(All))
BOTH = [Declared(All), Compiled(codes(All))]
SIZE = All.length()
GOOD = {"a": 1, "b": 2, "c": 3, "d": 4, "key": b"12345", "name": "work"}
both = pytest.mark.parametrize("coder", BOTH, ids=["declared", "compiled"])


@both
@given(
    st.integers(0, 2**8 - 1),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=5, max_size=5),
    st.text(string.printable, max_size=9),
)
def test_what_is_built_is_read_back(
    coder: Coder, a: int, b: int, c: int, d: int, key: bytes, name: str
) -> None:
    values = {"a": a, "b": b, "c": c, "d": d, "key": key, "name": name}
    built = coder.build(values)
    assert len(built) == coder.size and coder.parse(built) == values
    assert All.parse(built) == All(**values) and All(**values).build() == built


@both
def test_bytes_are_as_documented(coder: Coder) -> None:
    documented = b"MAGC\1\2\0\3\0\0\0\4\0\0\0\0\0\0\x0012345LUX\0\0\0\0\0\0\0\1"
    assert coder.size == len(documented)
    assert coder.build(GOOD | {"name": "LUX", "other": None}) == documented
    assert coder.parse(documented) == GOOD | {"name": "LUX"}


@both
@pytest.mark.parametrize("more", [-SIZE, -1, 1, SIZE])
def test_another_length_is_refused(coder: Coder, more: int) -> None:
    raw = (2 * coder.build(GOOD))[: SIZE + more]
    with pytest.raises(ValueError, match=f"{SIZE + more} bytes where {SIZE} belong"):
        coder.parse(raw)


@both
@given(st.binary(max_size=2 * SIZE))
def test_anything_else_is_a_value_error(coder: Coder, raw_bytes: bytes) -> None:
    try:
        values = coder.parse(raw_bytes)
    except ValueError:
        return
    assert coder.build(values)[:4] == b"MAGC"


@both
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a", 256),
        ("b", -1),
        ("d", 1 << 64),
        ("key", b"1234"),
        ("key", b"123456"),
        ("name", "0123456789"),
        ("name", "é"),
    ],
)
def test_what_does_not_fit_is_refused(coder: Coder, name: str, value: object) -> None:
    with pytest.raises(ValueError):
        coder.build(GOOD | {name: value})


@both
@pytest.mark.parametrize("at", [0, SIZE - 1])
def test_constants_are_checked(coder: Coder, at: int) -> None:
    damaged = bytearray(coder.build(GOOD))
    damaged[at] ^= 1
    with pytest.raises(ValueError, match="magic" if at == 0 else "end"):
        coder.parse(bytes(damaged))


@both
def test_text_that_is_not_ascii_is_refused(coder: Coder) -> None:
    with pytest.raises(ValueError):
        coder.parse(coder.build(GOOD).replace(b"work", b"w\xe9rk"))


def raises(action: Any, *arguments: Any, error: type[Exception] = ValueError) -> bool:
    try:
        action(*arguments)
    except error:
        return True
    return False


@given(st.integers(0, 2**64 - 1))
@example(LAST_TIME)
@example(LAST_TIME + 1)
def test_times_end_with_the_year_9999(seconds: int) -> None:
    raw = seconds.to_bytes(8, "little")
    for coder in (Declared(Times), Compiled(codes(Times))):
        assert coder.size == 8
        if seconds <= LAST_TIME:
            assert coder.build({"time": seconds}) == raw and coder.parse(raw) == {"time": seconds}
            assert len(session_name(seconds)) == 15
        else:
            assert raises(coder.build, {"time": seconds}) and raises(coder.parse, raw)


def test_what_only_describes_builds_nothing() -> None:
    class Page(Structure):
        number: Annotated[int, Int64ul]

    assert Page.fields == ("number",) and raises(Page.coder, error=TypeError)
    assert raises(Times.coder, error=TypeError) and raises(Times.row, error=TypeError)


def test_a_row_is_of_numbers_and_bytes_alone() -> None:
    table: Mapping[str, Any] = {"Row": {"a": "Q", "b": "4s"}}

    class Row(Structure, compiled=table):
        a: Annotated[int, Int64ul]

    assert Row.row().unpack(bytes(12)) == (0, bytes(4))
    for code in (b"MAGC", "T", "4t"):
        with pytest.raises(ValueError, match="more than its struct"):
            _ = Compiled({"a": "Q", "b": code}).row


def declared_here() -> tuple[type[Structure], type[Structure]]:
    """A structure that others build on, and one that does, both declared when this is called."""
    table: Mapping[str, Any] = {
        "Base": {"magic": b"MAGC", "number": "Q", "label": "8t"},
        "More": {"magic": b"MAGC", "number": "Q", "label": "8t", "end": "I"},
    }

    class Base(Structure, compiled=table):
        magic: ClassVar[Annotated[bytes, Const(b"MAGC")]]
        number: Annotated[int, Int64ul]
        label: Annotated[str, Text(8)] = "none"

    class More(Base, compiled=table, kw_only=True):
        end: Annotated[int, Int32ul] = 7

    return Base, More


def test_values_are_given_once_each_in_order_or_by_name() -> None:
    base, more = declared_here()
    assert base.fields == ("number", "label") and more.fields == ("number", "label", "end")
    assert base.compiled and more.compiled and not All.compiled
    assert vars(base(1)) == vars(base(number=1)) == {"number": 1, "label": "none"}
    assert vars(base(1, "x")) == vars(base(1, label="x")) == {"number": 1, "label": "x"}
    assert vars(more(number=1)) == {"number": 1, "label": "none", "end": 7}
    assert vars(more(end=2, number=1, label="x")) == {"number": 1, "label": "x", "end": 2}
    assert base.parse(base(1, "x").build()) == base(1, "x")
    assert more.parse(more(number=3).build()) == more(number=3)
    with pytest.raises(TypeError, match="Base takes the fields number, label"):
        base()
    given: list[tuple[type[Structure], tuple[Any, ...], dict[str, Any]]] = [
        (base, (1, "x", 2), {}),
        (base, (1,), {"number": 1}),
        (base, (1,), {"end": 2}),
        (base, (), {"label": "x"}),
        (more, (1,), {}),
        (more, (1, "x", 7), {}),
    ]
    for structure, values, named in given:
        with pytest.raises(TypeError):
            structure(*values, **named)


def test_equal_structures_are_of_one_class_and_have_the_same_values() -> None:
    base, more = declared_here()
    one, other = base(1, "x"), declared_here()[0](1, "x")
    assert one == base(1, "x") and hash(one) == hash(base(1, "x"))
    assert one != base(2, "x") and hash(one) != hash(base(2, "x"))
    assert one != other and vars(one) == vars(other)
    found = more(number=1, end=3)
    assert eval(repr(found), {"More": more}) == found


def test_numbers_of_the_kernel_are_in_the_machine_s_own_order() -> None:
    codes = {"number": "=Q", "kind": "=H"}
    assert Compiled(codes).row.format == "=QH"
    assert Compiled({name: code[1:] for name, code in codes.items()}).row.format == "<QH"
    assert Compiled({"magic": b"MAGC", "kind": "=H"}).size == 6

"""Structures: what is built is read back, and what does not fit is refused."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.text import session_name
from wire.layout import LAST_TIME, TIME, U8, U16, U32, U64, Fields, raw, text


def structure() -> Fields:
    return Fields(magic=b"MAGC", a=U8, b=U16, c=U32, d=U64, key=raw(5), name=text(9), end=b"\0\1")


ALL = structure()
GOOD = {"a": 1, "b": 2, "c": 3, "d": 4, "key": b"12345", "name": "work"}


@given(
    st.integers(0, 2**8 - 1),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=5, max_size=5),
    st.text(string.printable, max_size=9),
)
def test_what_is_built_is_read_back(a: int, b: int, c: int, d: int, key: bytes, name: str) -> None:
    values = {"a": a, "b": b, "c": c, "d": d, "key": key, "name": name}
    built = ALL.build(values)
    assert len(built) == ALL.size and ALL.parse(built) == values


def test_bytes_are_as_documented() -> None:
    fields, documented = (
        structure(),
        b"MAGC\1\2\0\3\0\0\0\4\0\0\0\0\0\0\x0012345LUX\0\0\0\0\0\0\0\1",
    )
    assert fields.size == len(documented)
    assert fields.build(GOOD | {"name": "LUX", "other": None}) == documented
    assert fields.parse(documented) == GOOD | {"name": "LUX"}


def test_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{ALL.size - 1} bytes where {ALL.size} belong"):
        ALL.parse(ALL.build(GOOD)[:-1])


@given(st.binary(max_size=2 * ALL.size))
def test_anything_else_is_a_value_error(raw_bytes: bytes) -> None:
    try:
        values = ALL.parse(raw_bytes)
    except ValueError:
        return
    assert ALL.build(values)[:4] == b"MAGC"


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
def test_what_does_not_fit_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError):
        ALL.build(GOOD | {name: value})


@pytest.mark.parametrize("at", [0, ALL.size - 1])
def test_constants_are_checked(at: int) -> None:
    damaged = bytearray(ALL.build(GOOD))
    damaged[at] ^= 1
    with pytest.raises(ValueError, match="magic" if at == 0 else "end"):
        ALL.parse(bytes(damaged))


def test_text_that_is_not_ascii_is_refused() -> None:
    with pytest.raises(ValueError, match="name"):
        ALL.parse(ALL.build(GOOD).replace(b"work", b"w\xe9rk"))


@given(st.integers(0, 2**64 - 1))
def test_times_end_with_the_year_9999(seconds: int) -> None:
    fields, built = Fields(time=TIME), Fields(time=U64).build({"time": seconds})
    assert fields.size == len(built) == 8
    if seconds <= LAST_TIME:
        assert fields.build({"time": seconds}) == built and fields.parse(built) == {"time": seconds}
        assert len(session_name(seconds)) == 15
    else:
        for action in (lambda: fields.build({"time": seconds}), lambda: fields.parse(built)):
            with pytest.raises(ValueError, match="later than the year 9999"):
                action()

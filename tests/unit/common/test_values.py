# SPDX-License-Identifier: GPL-2.0-or-later
"""``common.values`` beside the standard library's dataclasses, which it takes the place of."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import values


def declared(library: Any, frozen: bool, kw_only: bool) -> tuple[type[Any], type[Any]]:
    """A class as a library makes it, and one that is made from that."""

    @library.dataclass(frozen=frozen, kw_only=kw_only)
    class Base:
        """A base."""

        number: int
        CONSTANT: ClassVar[int] = 7
        text: str = "text"
        many: list[Any] = library.field(default_factory=list, repr=False)

    @library.dataclass(frozen=frozen, kw_only=kw_only)
    class Derived(Base):
        """With a default of its own, and one field more."""

        text: str = "other"
        more: "tuple[Any, ...]" = ()

        def __post_init__(self) -> None:
            object.__setattr__(self, "many", [*self.many, "after"])

    return Base, Derived


def outcome(action: Callable[[], Any]) -> Any:
    """What comes of it, so that it can be compared between classes of different libraries."""
    try:
        found = action()
    except (TypeError, AttributeError) as error:
        return TypeError if isinstance(error, TypeError) else AttributeError
    return repr(found).replace("values.", "dataclasses.")


FIELD = st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
NAMES = ("number", "text", "many", "more", "unknown")


@given(
    st.booleans(),
    st.booleans(),
    st.lists(FIELD, max_size=2),
    st.dictionaries(st.sampled_from(NAMES), FIELD),
    st.dictionaries(st.sampled_from(NAMES), FIELD, max_size=2),
)
def test_they_are_as_the_librarys(
    frozen: bool, kw_only: bool, given: list[Any], named: dict[str, Any], changed: dict[str, Any]
) -> None:
    for words in (named, changed):
        if isinstance(words.get("many"), str | int):
            del words["many"]
    own, librarys = declared(values, frozen, kw_only), declared(dataclasses, frozen, kw_only)
    for ours, theirs in zip(own, librarys, strict=True):
        made = outcome(partial(ours, *given, **named))
        assert made == outcome(partial(theirs, *given, **named))
        if made is not TypeError:
            alike(ours(*given, **named), theirs(*given, **named), changed)
            assert ours(*given, **named) == ours(*given, **named) != theirs(*given, **named)


def alike(ours: Any, theirs: Any, changed: dict[str, Any]) -> None:
    assert values.asdict(ours) == dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    named = [(one.name, one.type) for one in values.fields(ours)]
    for value in (ours, theirs):
        assert [(one.name, one.type) for one in dataclasses.fields(value)] == named
    wanted = outcome(lambda: dataclasses.replace(theirs, **changed))
    assert outcome(lambda: values.replace(ours, **changed)) == wanted
    assert outcome(lambda: dataclasses.replace(ours, **changed)) == wanted
    assert (type(ours).__hash__ is None) == (type(theirs).__hash__ is None)
    for action in (hash, lambda it: setattr(it, "number", 5), lambda it: delattr(it, "text")):
        assert done(action, ours) == done(action, theirs)


def done(action: Callable[[Any], Any], value: Any) -> Any:
    """Whether that can be done, and what the value is then."""
    return outcome(lambda: (action(value), value)[1])


def test_equal_ones_have_one_hash() -> None:
    @values.dataclass(frozen=True)
    class Pair:
        a: int
        b: str = "b"

    assert len({Pair(1), Pair(1, "b"), Pair(a=1)}) == 1 and Pair(1) != Pair(2)
    assert {values.replace(Pair(1), a=2): "two"}[Pair(2)] == "two"


def test_asdict_goes_into_what_it_holds() -> None:
    @values.dataclass
    class Inner:
        number: int

    @values.dataclass
    class Outer:
        one: Inner
        many: list[Inner]
        named: dict[str, Inner]

    outer = Outer(Inner(1), [Inner(2)], {"x": Inner(3)})
    wanted = {"one": {"number": 1}, "many": [{"number": 2}], "named": {"x": {"number": 3}}}
    assert values.asdict(outer) == dataclasses.asdict(outer) == wanted


def test_a_value_by_place_and_by_name_is_refused() -> None:
    @values.dataclass
    class One:
        a: int

    for places, named in (((1,), {"a": 1}), ((1, 2), {}), ((), {}), ((), {"a": 1, "b": 2})):
        with pytest.raises(TypeError):
            One(*places, **named)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is who, against a model that knows each qube by a number of its own."""

import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.admin.renaming import adopted, change, claimed, expected, followed, renamed
from dom0_agent.tracking import identities as who
from dom0_agent.tracking.identities import Identities, Known
from wire.names import NAME_LIMIT, BadName, new_identity, parse_identity, parse_name, set_aside
from wire.status import Refused

NAMES = st.sampled_from(["work", "play", "vault", "work.old", "work.old2"])


def a_uuid(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


def sound(known: Identities) -> None:
    """What holds whatever happens."""
    names = [one.name for one in known.known.values()]
    assert len(names) == len(set(names))
    for identity, one in known.known.items():
        parse_identity(identity)
        parse_name(one.name)
        assert one.retired != (known.of(one.name) == identity)
    assert who._from_bytes(known.to_bytes()).known == known.known


@given(
    st.lists(
        st.tuples(st.sampled_from(["make", "delete", "rename", "swap", "look"]), NAMES, NAMES),
        max_size=30,
    )
)
def test_with_uuids_a_qube_keeps_its_identity_and_shares_it_with_no_other(
    steps: list[tuple[str, str, str]],
) -> None:
    """Whatever is made, deleted and renamed between two looks at the list."""
    there, made, known, seen = dict[str, int](), 0, Identities(), dict[int, str]()
    for step, name, other in [*steps, ("look", "", "")]:
        if step == "make" and name not in there:
            there[name], made = made, made + 1
        elif step == "delete":
            there.pop(name, None)
        elif step == "rename" and name in there and other not in there:
            there[other] = there.pop(name)
        elif step == "swap" and name in there and other in there:
            there[name], there[other] = there[other], there[name]
        elif step == "look":
            known = followed(known, {qube: a_uuid(number) for qube, number in there.items()})
            sound(known)
            for qube, number in there.items():
                assert seen.setdefault(number, known.of(qube)) == known.of(qube)
                assert known.name(known.of(qube)) == qube
            assert len(set(seen.values())) == len(seen)


@given(st.lists(st.tuples(NAMES, NAMES, st.booleans()), max_size=12))
def test_without_uuids_a_name_is_a_qube_until_somebody_says_so(
    steps: list[tuple[str, str, bool]],
) -> None:
    known, listed = Identities(), dict.fromkeys(["work", "vault"], "")
    for old, new, look in steps:
        if look:
            known = followed(known, listed)
        if old in listed and new not in listed:
            identity = known.of(old)
            del listed[old]
            listed[new] = ""
            known = renamed(followed(known, listed), old, new, listed)
            assert known.of(new) == identity and known.name(identity) == new
        sound(known)
        assert len({known.of(name) for name in listed}) == len(listed)


def test_a_qube_made_again_is_another_one() -> None:
    known = followed(Identities(), {"work": a_uuid(1), "vault": a_uuid(2)})
    again = followed(known, {"work": a_uuid(3), "vault": a_uuid(2)})
    assert again.of("work") == "_2.work" and again.of("vault") == "vault"
    assert again.known["work"] == Known("work.old", retired=True)
    assert again.is_retired("work") and not again.is_retired("_2.work")
    back = renamed(again, "work.old", "work", {"work", "vault"})
    assert back.known["work"] == Known("work", a_uuid(3))
    assert back.is_retired("_2.work") and back.name("_2.work") == "work.old2"
    assert followed(back, {"work": a_uuid(3)}).known == back.known


def test_one_that_is_made_of_its_settings_continues() -> None:
    known = expected(followed(Identities(), {"work": a_uuid(1)}), "work")
    assert followed(known, {"work": a_uuid(2)}).known == {"work": Known("work", a_uuid(2))}
    assert expected(known, "nobody") == known


def test_a_name_is_not_guessed_from_a_uuid_that_is_none() -> None:
    for none in ("0", "", a_uuid(-1)):
        known = followed(Identities(), {"work": none, "play": none})
        assert known.known == {"work": Known("work"), "play": Known("play")}


def test_what_archives_tell_gives_way_to_what_there_is() -> None:
    known = followed(Identities(), {"play": a_uuid(1), "work": a_uuid(2)})
    taken = adopted(known, "first", "play", lambda _: True)
    assert taken.known["first"] == Known("play", a_uuid(1)) and "play" not in taken.known
    kept = adopted(known, "first", "play", lambda _: False)
    assert kept.known["first"] == Known("play.old", retired=True)
    assert adopted(known, "work", "other", lambda _: False) == known
    assert claimed(known, "dom0", "dom0") == known == claimed(known, "work", "work")


@pytest.mark.parametrize("there", [(), ("vault",), ("safe",), ("vault", "safe")])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_new_qube_gets_no_history_for_having_the_first_name_of_another(
    there: tuple[str, ...], backwards: bool
) -> None:
    """On a new machine, where qubes were made by hand before the archive is taken over."""
    uuids = {name: a_uuid(number) for number, name in enumerate(there)}
    known = followed(Identities(), uuids)
    records = [("vault", "safe"), ("_2.vault", "vault")]
    for identity, name in reversed(records) if backwards else records:
        known = adopted(known, identity, name, lambda _: True)
    sound(known)
    assert {one: known.name(one) for one, _ in records} == dict(records)
    assert all(known.known[known.of(name)].uuid == uuid for name, uuid in uuids.items())
    assert followed(known, uuids).known == known.known


@given(NAMES, st.sets(NAMES))
def test_names_that_are_made_up(name: str, taken: set[str]) -> None:
    assert set_aside(name, taken) not in taken | {name}
    identity = new_identity(name, taken)
    assert parse_identity(identity) == identity and (identity == name) == (name not in taken)
    if name in taken:
        with pytest.raises(BadName):
            parse_name(identity)
    assert len(new_identity("a" * NAME_LIMIT, {"a" * NAME_LIMIT})) == NAME_LIMIT
    assert len(set_aside("a" * NAME_LIMIT, ())) == NAME_LIMIT


@pytest.mark.parametrize(
    "identity", ["", "_work", "_0.work", "_2.", "_2._3.work", "a/b", "a+b", ".."]
)
def test_what_is_no_identity(identity: str) -> None:
    with pytest.raises(BadName):
        parse_identity(identity)


def test_a_damaged_file_is_not_guessed_at_but_made_again(tmp_path: Path) -> None:
    change(tmp_path, lambda known: followed(known, {"work": a_uuid(1)}))
    path = who.place(tmp_path)
    assert who.load(tmp_path).of("work") == "work"
    sound_bytes = path.read_bytes()
    for raw in (b"", b"{}", sound_bytes.replace(b"work", b"walk"), Identities().to_bytes()[:-1]):
        path.write_bytes(raw)
        with pytest.raises(Refused, match="sparsebak-agent volumes"):
            who.load(tmp_path)
    path.write_bytes(Identities({"a": Known("x"), "b": Known("x")}).to_bytes())
    with pytest.raises(Refused, match="one name"):
        who.load(tmp_path)
    assert change(tmp_path, lambda known: known).known == {} and who.load(tmp_path).kept

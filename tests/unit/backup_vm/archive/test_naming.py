# SPDX-License-Identifier: GPL-2.0-or-later
"""Names are exactly as the archive makes them, or not its own."""

import pytest

from backup_vm.archive import naming

VOLUME, SESSION = "volumes/" + "a1" * 16, "b2" * 16
OURS = {
    f"{VOLUME}/0000000007-{SESSION}.session": naming.is_session,
    f"{VOLUME}/{SESSION}.partial": naming.is_partial,
    f"{VOLUME}/{SESSION}-01234567.unfinished": naming.is_unfinished,
    "packs/c3/" + "c3" * 16 + ".pack": naming.is_pack,
}


@pytest.mark.parametrize("name", OURS)
def test_one_kind_each(name: str) -> None:
    kinds = [naming.is_session, naming.is_partial, naming.is_unfinished, naming.is_pack]
    assert [kind(name) for kind in kinds] == [kind is OURS[name] for kind in kinds]


@pytest.mark.parametrize("name", OURS)
def test_anything_else_is_foreign(name: str) -> None:
    stem, _, ending = name.rpartition(".")
    folder, _, last = name.rpartition("/")
    for other in (
        f"{stem} (1).{ending}",
        f"{name}.tmp",
        f"{name}\n",
        f"{folder}/._{last}",
        f"{folder}/0{last}",
        f"{folder}/{last.upper()}",
        f"x/{name}",
        f"{folder}x/{last}",
        name.replace("/", "//", 1),
    ):
        assert not OURS[name](other), other


def test_of_which_session_and_volume() -> None:
    for name, kind in OURS.items():
        if kind is not naming.is_pack:
            assert naming.session_of(name) == SESSION and naming.volume_of(name) == "a1" * 16

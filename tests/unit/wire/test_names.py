# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from common.text import is_session_name, session_name
from wire.names import BadName, parse_name, parse_volume_name


@pytest.mark.parametrize("name", ["work", "a", "sys-net", "Work_2.old", "0", "x" * 63])
def test_good_names_pass_unchanged(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../x",
        "-rf",
        ".hidden",
        "a/b",
        "a b",
        "a\n",
        "a\0",
        "x" * 64,
        "ä",
        "a+b",
        "@adminvm",
        "$(x)",
        "\u202eabc",
    ],
)
def test_all_else_is_refused(name: str) -> None:
    with pytest.raises(BadName):
        parse_name(name)


def test_a_volume_is_qube_slash_volume() -> None:
    assert parse_volume_name("work/private") == ("work", "private")
    for bad in ("work", "work/", "/private", "a/b/c", "../private"):
        with pytest.raises(BadName):
            parse_volume_name(bad)


def test_sessions_are_named_in_utc() -> None:
    assert session_name(1795414500) == "20261123-061500"
    assert is_session_name("20261123-061500") and not is_session_name("latest")

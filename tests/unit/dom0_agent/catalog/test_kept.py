# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of volumes that calls read: what was written comes back, and nothing else does."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.catalog import Skipped, open_catalog
from dom0_agent.catalog.kept import Kept, options_digest, place
from dom0_agent.config import Config, Pool, Volume, load
from wire.status import Code, Refused

NAME = st.text("abz09_.-", min_size=1, max_size=5)
POOL = st.builds(
    Pool, NAME, st.sampled_from(["lvm_thin", "reflink", "settings"]), NAME.map(Path), NAME, NAME
)
VOLUME = st.builds(Volume, NAME, NAME, POOL, NAME, NAME, st.binary(min_size=16, max_size=16))
SKIPPED = st.builds(Skipped, NAME, st.text(max_size=9), st.booleans(), st.just(False))
KEPT = st.builds(
    Kept,
    asked=st.integers(0, 1 << 40),
    options=NAME,
    named=st.lists(NAME, max_size=3).map(tuple),
    volumes=st.lists(VOLUME, max_size=5).map(tuple),
    skipped=st.lists(SKIPPED, max_size=3).map(tuple),
)


@given(KEPT)
def test_a_list_comes_back(kept: Kept) -> None:
    assert Kept.from_bytes(kept.to_bytes()) == kept


@given(KEPT, st.data())
def test_a_list_with_anything_else_in_it_is_none(kept: Kept, data: st.DataObject) -> None:
    raw = bytearray(kept.to_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    harm = data.draw(st.sampled_from(["flip", "cut", "drop"]))
    if harm == "flip":
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    elif harm == "cut":
        del raw[at:]
    else:
        del raw[at]
    try:
        found = Kept.from_bytes(bytes(raw))
    except ValueError:
        return
    assert found == kept  # white space between words


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "agent.toml"
    path.write_text('state_dir = "state"\ncatalog = "qubes"\n[qubes]\ninclude = ["keeper"]\n')
    (tmp_path / "state").mkdir()
    return load(path)


def volume(qube: str, name: str = "private") -> Volume:
    return Volume(qube, name, Pool("p", "reflink", Path("/p")), f"{qube}.img")


def write(config: Config, asked: float, named: tuple[str, ...] = ()) -> None:
    skipped = (Skipped("stumbles", "it stumbles", True), Skipped("work/settings", "old", True))
    volumes = (volume("work"), volume("keeper"), volume("stumbles"))
    kept = Kept(int(asked), options_digest(config), named, volumes, skipped)
    place(config).write_bytes(kept.to_bytes())


def names(config: Config, caller: str) -> list[str]:
    return [found.name for found in open_catalog(config, caller).volumes()]


def test_a_callers_own_volumes_are_left_out_unless_named(config: Config) -> None:
    write(config, time.time())
    assert names(config, "keeper") == ["work/private", "stumbles/private"]
    assert open_catalog(config, "keeper").find("keeper", "private") is None
    assert "keeper" in {skipped.name for skipped in open_catalog(config, "keeper").skipped()}
    assert "keeper/private" in names(config, "another")
    write(config, time.time(), ("keeper",))
    assert "keeper/private" in names(config, "keeper")


def test_of_what_nobody_could_tell_nothing_is_said(config: Config) -> None:
    write(config, time.time() - 100)
    catalog = open_catalog(config)
    assert 100 <= catalog.age < 110
    assert catalog.find("work", "private") == volume("work")
    assert catalog.find("work", "root") is None and catalog.find("nobody", "private") is None
    for qube, name in (("stumbles", "private"), ("work", "settings")):
        with pytest.raises(Refused):
            catalog.find(qube, name)


def refused(config: Config) -> str:
    with pytest.raises(Refused, match="run: sparsebak-agent volumes") as caught:
        open_catalog(config)
    assert caught.value.code == Code.NOT_LISTED
    return str(caught.value)


def test_a_list_that_is_not_there_or_damaged_or_for_other_options(config: Config) -> None:
    assert "not listed yet" in refused(config)
    write(config, time.time())
    raw = place(config).read_bytes()
    for harmed in (b"", raw[:-3], raw.replace(b"work", b"vork"), b"[]", b"[" * 100_000):
        place(config).write_bytes(harmed)
        assert "cannot be used" in refused(config)
    write(config, time.time())
    config.path.write_text(config.path.read_text() + 'exclude = ["work"]\n')
    assert "agent.toml is not what it was made for" in refused(load(config.path))
    config.path.write_text("threads = 3\n" + config.path.read_text().replace('["work"]', "[]"))
    assert "agent.toml" in refused(load(config.path))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Notes that are malformed are refused as damage, whatever their checksum says."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive import notes
from backup_vm.archive.damage import text_checksum
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import DamagedError
from wire.layout import LAST_TIME

GOOD: dict[str, Any] = {
    "format": 2,
    "sessions": {"00": {"tags": ["gold"], "note": "first"}},
    "verified": {"00": [1, True]},
    "scrubbed": [LAST_TIME, False],
    "packs": [[5, ["00" * 8]]],
    "seen": [[6, ["11" * 8]]],
    "unsound": ["00" * 8],
    "archive": "ab" * 16,
    "changes": 3,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def loaded(folder: Path, body: bytes) -> notes.Notes:
    (folder / notes.NAME).write_bytes(body + b"\n" + text_checksum(body).encode() + b"\n")
    return notes.load(LocalStorage(folder))


def test_good_notes_are_read(tmp_path: Path) -> None:
    found = loaded(tmp_path, json.dumps(GOOD).encode())
    assert found.of(b"\0") == notes.Note(frozenset({"gold"}), "first")
    assert found.verified == {"00": notes.Check(1, True)} and found.scrubbed == notes.Check(
        LAST_TIME, False
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"scrubbed": []},
        {"scrubbed": [1]},
        {"scrubbed": [1, 2, 3]},
        {"scrubbed": [True, True]},
        {"scrubbed": [1, 1]},
        {"scrubbed": [-1, True]},
        {"scrubbed": [LAST_TIME + 1, True]},
        {"scrubbed": [float("inf"), True]},
        {"verified": {"00": []}},
        {"verified": []},
        {"sessions": {"00": {"tags": [[]], "note": ""}}},
        {"sessions": {"00": {"tags": ["latest"], "note": ""}}},
        {"sessions": {"00": {"tags": [], "note": "two\nlines"}}},
        {"sessions": {"00": {"tags": []}}},
        {"sessions": {"00": []}},
        {"packs": [[-1, []]]},
        {"seen": [[6, ["short"]]]},
        {"unsound": [7]},
        {"archive": 7},
        {"archive": "ab"},
        {"changes": -1},
        {"changes": True},
        {"changes": 1e300},
        {"format": 1},
        {"format": 3},
    ],
)
def test_what_makes_no_sense_is_damage(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(DamagedError, match=r"notes\.json is malformed"):
        loaded(tmp_path, json.dumps(GOOD | wrong).encode())


def test_notes_of_another_archive_are_damage(tmp_path: Path) -> None:
    loaded(tmp_path, json.dumps(GOOD).encode())
    storage = LocalStorage(tmp_path)
    storage.archive = b"\xab" * 16
    assert notes.load(storage).changes == 3
    storage.archive = bytes(16)
    with pytest.raises(DamagedError, match="is of another archive"):
        notes.load(storage)
    with pytest.raises(DamagedError, match="is of another archive"):
        notes.change(storage, lambda every: every.copies.add("0" * 32))


def test_notes_that_do_not_say_whose_they_are_get_that_when_they_change(tmp_path: Path) -> None:
    loaded(tmp_path, json.dumps({k: v for k, v in GOOD.items() if k != "archive"}).encode())
    storage = LocalStorage(tmp_path)
    storage.archive = b"\1" * 16
    notes.change(storage, lambda every: None)
    assert notes.load(storage).archive == ""
    notes.change(storage, lambda every: every.copies.add("0" * 32))
    found = notes.load(storage)
    assert (found.archive, found.changes) == ("01" * 16, 4)


def test_notes_nested_without_end_are_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"notes\.json is malformed"):
        loaded(tmp_path, b"[" * 200_000)


@given(part=st.sampled_from(sorted(GOOD)), anything=JSON)
def test_anything_is_read_or_damage(
    tmp_path_factory: pytest.TempPathFactory, part: str, anything: Any
) -> None:
    try:
        found = loaded(
            tmp_path_factory.mktemp("notes"), json.dumps(GOOD | {part: anything}).encode()
        )
    except DamagedError:
        return
    assert notes._parse(json.loads(notes._dump(found).split(b"\n")[0])) == found

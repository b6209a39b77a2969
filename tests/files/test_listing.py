# SPDX-License-Identifier: GPL-2.0-or-later
"""A folder's entries are the same in memory and in a file, and take bounded memory there."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.files import listing
from backup_vm.files.answers import Entry, FileSystemError, Stat
from backup_vm.files.listing import Listing

NUMBERS = st.integers(0, (1 << 62) - 1)
STATS = st.builds(Stat, *[NUMBERS] * 5, *[st.integers(-(1 << 63), 1 << 64)] * 3, NUMBERS, NUMBERS)
ENTRIES = st.lists(
    st.builds(
        Entry,
        st.binary(min_size=1, max_size=6),
        st.integers(0, (1 << 128) - 1),
        st.none() | STATS,
        st.text(st.characters(codec="utf-8"), max_size=5),
    ),
    max_size=9,
)


@given(ENTRIES, st.sampled_from([0, 3, 100]), st.binary(min_size=1, max_size=6))
def test_few_and_many_are_the_same(entries: list[Entry], few: int, other: bytes) -> None:
    with mock.patch.object(listing, "FEW", few):
        if len({entry.name for entry in entries}) < len(entries):
            with pytest.raises(FileSystemError, match="twice"):
                Listing(iter(entries))
            return
        found = Listing(iter(entries))
    model = {entry.name: entry for entry in entries}
    assert list(found) == [model[name] for name in sorted(model)]
    assert all(found.get(name) == model.get(name) for name in (*model, other))
    all_of_them = list(found.after(0))
    assert sorted(entry for _, entry in all_of_them) == list(found)
    for count, (position, _) in enumerate(all_of_them, 1):
        assert list(found.after(position)) == all_of_them[count:]
    found.close()


MANY = """
import resource
from backup_vm.files.answers import Entry, Stat
from backup_vm.files.listing import Listing
about = Stat(0o100644, 1, 0, 0, 5, 0, 0, 0, 0, 0)
entries = (Entry(b"%064d" % (i * 7919 % 100_003), i, about) for i in range(100_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = Listing(entries)
assert sum(1 for _ in found) == 100_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_many_take_little_memory() -> None:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", MANY], cwd=root, check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 64 << 10, "KiB"

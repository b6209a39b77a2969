# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from backup_vm.terminal.text import size_text, table


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 << 20, "1.5 GiB"),
        (1 << 60, "1024.0 PiB"),
    ],
)
def test_sizes_are_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


def test_columns_line_up() -> None:
    assert table([["A", "SIZE"], ["long", "1"]], frozenset({1})) == "A     SIZE\nlong     1"
    assert table([]) == ""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Shares as the guard of prunes takes them."""

import pytest

from backup_vm.jobs.guard import parse_percent


@pytest.mark.parametrize("share", [0, 7, 50, 100])
def test_shares(share: int) -> None:
    assert parse_percent(f"{share}%") == share


@pytest.mark.parametrize("text", ["", "%", "50", "101%", "-1%", "5 %", "٥%", "9" * 5000 + "%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ValueError, match="is not a share such as 50%"):
        parse_percent(text)

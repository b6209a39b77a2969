# SPDX-License-Identifier: GPL-2.0-or-later
"""All of it takes minutes: ``make test-places``. Without SPARSEBAK_LONG only a few are run."""

import os

import pytest

FEW = (
    "test_mounts.py::test_a_whole_life[fuse, poor]",
    "test_a_file_system_that_brings_no_file",
    "test_full.py::test_prune_scrub_and_delete_work[ext4]",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "SPARSEBAK_LONG" in os.environ or "SPARSEBAK_VM" in os.environ:
        return
    ours = [item for item in items if "tests/places/" in item.nodeid]
    left = [item for item in ours if not any(name in item.nodeid for name in FEW)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]

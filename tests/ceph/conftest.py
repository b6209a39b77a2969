# SPDX-License-Identifier: GPL-2.0-or-later
"""A cluster for all tests of a module."""

from collections.abc import Iterator

import pytest

from tests.ceph.cluster import Cluster, cluster


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("ceph")) as made:
        yield made

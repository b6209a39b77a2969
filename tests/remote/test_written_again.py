# SPDX-License-Identifier: GPL-2.0-or-later
"""Of an archive elsewhere the versions of its sessions are what they were at the next look: nothing
is looked through again that this machine has written or merged itself.
"""

from collections.abc import Callable

import pytest

from backup_vm.archive import derive
from backup_vm.archive.prune import prune
from tests.kit import GRAIN, Site, fill


def test_own_sessions_are_not_looked_through_again(
    remote_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = remote_site()
    for seed in range(3):
        fill(site.image(), 4 * GRAIN, seed)
        site.backup()
    with site.open(True) as archive:
        (series,) = archive.sessions().values()
        assert prune(archive, series[:1]).sessions == 1
    looked = list[str]()
    lacking = derive.lacking_in

    def noting(archive: object, catalog: object, names: list[str]) -> dict[str, int]:
        looked.extend(names)
        return lacking(archive, catalog, names)  # type: ignore[arg-type]

    monkeypatch.setattr(derive, "lacking_in", noting)
    with site.open(True) as archive:
        assert not archive.found
    assert not looked

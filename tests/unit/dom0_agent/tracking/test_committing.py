# SPDX-License-Identifier: GPL-2.0-or-later
"""Chunk ids that dom0 keeps, when a volume comes into another deduplication domain."""

import pytest

from dom0_agent.tracking import rotation
from tests.kit import GRAIN, Site, fill, own_domains


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_volume_in_another_domain_is_a_full_session_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    """Its ids prove by its own domain's root, also where a later call finishes Commit."""
    fill(site.image(), 20 * GRAIN + 5)
    site.backup()
    assert not site.backup().done[0].full
    with own_domains():
        if interrupted:
            with monkeypatch.context() as patch:
                patch.setattr(rotation, "apply", lambda *_: (_ for _ in ()).throw(OSError("died")))
                with pytest.raises(AssertionError, match="work/private"):
                    site.backup()
        else:
            (done,) = site.backup().done
            assert done.full and done.stored > 0
        with open(site.image(), "r+b") as file:
            file.write(b"something else")
        (done,) = site.backup().done
        assert not done.full and 0 < done.stored < 2 * GRAIN
        assert list(site.images().values())[-1] == site.contents()
    assert site.backup().done[0].full  # and back
    site.verify_all()

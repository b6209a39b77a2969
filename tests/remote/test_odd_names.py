# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of other programs' objects among ours."""

import random
from collections.abc import Callable

import pytest

from backup_vm.archive.storage.objects import Entry
from backup_vm.archive.storage.remote import RemoteStorage
from backup_vm.archive.storage.s3 import ObjectStore
from tests.commands import Commands
from tests.kit import GRAIN, Site, change, fill
from tests.remote.kit import Server

Make = Callable[..., Site]


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteStorage, "pack_size", 4 * GRAIN)


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_a_name_that_obstore_cannot_read_is_passed_over(remote_site: Make, server: Server) -> None:
    """One object of another program's must not make the archive one that cannot be had."""
    site = remote_site()
    fill(site.image(), 8 * GRAIN)
    site.backup()
    put = putting(site, server)
    put("/x")
    put("notes//x")
    assert not site.backup().done[0].full and site.scrubbed() == []
    assert list(site.images().values())[-1] == site.contents()


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_what_is_too_large_to_be_a_file_is_passed_over(
    remote_site: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a store may say."""
    site, listed = remote_site(), ObjectStore.list
    fill(site.image(), 8 * GRAIN)
    site.backup()
    pack, session = (
        f"packs/ab/{'ab' * 16}.pack",
        f"volumes/{'1' * 32}/0000000001-{'2' * 32}.session",
    )
    more = [(pack, Entry(1 << 63, "x")), (session, Entry((1 << 64) - 1, "x"))]
    monkeypatch.setattr(ObjectStore, "list", lambda store: [*listed(store), *more])
    assert not site.backup().done[0].full
    assert list(site.images().values())[-1] == site.contents()


def putting(site: Site, server: Server) -> Callable[[str], object]:
    """Puts objects beside those of an archive, by names that a path in a URL cannot have."""
    import boto3

    keys = {"aws_access_key_id": "tests", "aws_secret_access_key": "tests"}
    address = f"http://127.0.0.1:{server.port}"
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
    bucket, _, path = str(site.archive).removeprefix("s3://").partition("/")
    return lambda name: client.put_object(Bucket=bucket, Key=f"{path}/{name}", Body=b"x")


ODD_NAMES = {
    "packs": ["packs//x", "packs/ab/x y", "packs/"],
    "in a folder of packs": ["packs/{}//x", "packs/{}/\x01", "packs/{}/"],
    "volumes": ["volumes//x", "volumes/./y", "volumes/"],
    "in a volume": ["volumes/{}//x", "volumes/{}/..", "volumes/{}/a folder/", "volumes/{}/"],
    "in a folder that is not ours": ["volumes/{}/x//y", "packs/zz/x//y", "packs/zz//y"],
    "of a folder like a file": ["{}/", "{}//"],
    "everywhere": ["packs/zz//y", "volumes/{}//x", "locks//x", "//", "."],
}


@pytest.mark.parametrize("kind", ODD_NAMES)
@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_an_odd_name_where_ours_are_is_passed_over(
    remote_site: Make,
    server: Server,
    kind: str,
    commands_for: Callable[[Site], Commands],
) -> None:
    """It stops nothing; scrub names it."""
    site = remote_site()
    fill(site.image(), 8 * GRAIN)
    site.backup()
    put = putting(site, server)
    with site.open() as archive:
        packs, sessions = archive.pack_files(), archive.session_files()
    pack, session = packs[0], sessions[0]
    ours = {"packs": pack.split("/")[1], "volumes": session.split("/")[1], "{}": session}
    for name in ODD_NAMES[kind]:
        put(name.format(ours.get(name.split("/")[0], "")))
    change(site.image(), random.Random(1))
    assert not site.backup().done[0].full
    assert list(site.images().values())[-1] == site.contents()
    assert site.scrubbed() == []
    with site.open() as archive:
        assert set(sessions) < set(archive.session_files())
        assert set(packs) <= set(archive.pack_files())
    commands = commands_for(site)
    assert "is not a file of sparsebak's" in commands.run("scrub")[1]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The site that is copied for each fault: three sessions of two volumes, changes since, and a copy
with two of them.
"""

import itertools
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_vm.archive import pack_writer
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.volumes import stored_volumes
from tests.conftest import cannot, in_memory
from tests.faultfs import FaultFS, missing
from tests.faults.harness import VOLUMES, Bench, Place, computed, write_passphrase
from tests.faults.scenarios import SIZE, write_here_and_there
from tests.kit import GRAIN, Site
from wire import slots


def _small(patch: pytest.MonkeyPatch) -> None:
    """Packs and costs as these tests have them: while one runs, for the process has others to run
    before the last of these.
    """
    patch.setattr(LocalStorage, "pack_size", 3 * GRAIN)
    patch.setattr(pack_writer, "RECORD_SECONDS", 0)
    patch.setattr(slots, "SCRYPT_LOG_N", 10)


@pytest.fixture
def bench(built: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A file system that fails, and the site below it."""
    _small(monkeypatch)
    return built


@pytest.fixture(scope="session")
def built() -> Iterator[Bench]:
    """The same, one for each process that runs tests."""
    if reason := missing():
        cannot(reason)
    with tempfile.TemporaryDirectory() as folder:
        root = in_memory(Path(folder) / "faults")
        root.mkdir(exist_ok=True)
        system = FaultFS(root)
        try:
            bench = Bench(system, root / "base")
            with pytest.MonkeyPatch.context() as patch:
                _small(patch)
                _build(bench)
            yield bench
        finally:
            system.close()
            shutil.rmtree(root, ignore_errors=True)


def _build(bench: Bench) -> None:
    bench.base.mkdir()
    (bench.base / "home").mkdir()
    write_passphrase(bench.base)
    site = Site(bench.base / "site", volumes=VOLUMES)
    place = Place(bench.base, bench.names)
    for seed, name in enumerate(VOLUMES):
        site.image(name).write_bytes(random.Random(seed).randbytes(SIZE))
    times = itertools.count()
    for _ in range(2):
        backup(site)
        write_here_and_there(place, next(times))
    done = place.command("copy", "{root}/copy")
    assert done.code == 0, done.text
    backup(site)
    with site.open() as archive:
        (site.root / "archive-id").write_bytes(archive.parameters.archive)
        named = {v.name: v for v in stored_volumes(archive, site.keys(archive), {})}
        for word, session in zip(("first", "second"), named["work/private"].sessions, strict=False):
            bench.names[word] = session.name
    done = place.command(
        *("export", "work/private", "-o", "{root}/export.sbx", "--passphrase-file", "{passphrase}")
    )
    assert done.code == 0, done.text
    write_here_and_there(place, next(times))
    site.add_archive("second", bench.base / "empty")
    _build_another(bench.base)
    bench.volumes = {name: [image] for name, image in place.now().items()}
    bench.known = {archive: place.images(archive) for archive in ("site/archive", "copy")}


def backup(site: Site) -> None:
    computed(lambda: site.backup() and None)


def _build_another(base: Path) -> None:
    """``taken.keys``: what another dom0's archive can be taken over with."""
    place = Place(base / "another", {})
    Site(place.root / "site", volumes=VOLUMES)
    for name in VOLUMES:
        place.site.image(name).write_bytes(random.Random(name).randbytes(GRAIN))
    backup(place.site)
    done = place.command("keys", "-o", str(base / "taken.keys"))
    assert done.code == 0, done.text
    shutil.rmtree(place.root)

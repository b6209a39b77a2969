# SPDX-License-Identifier: GPL-2.0-or-later
"""A Qubes machine without Xen: a stand-in for qubesd, and the real qubesadmin where it can be
imported, else one like it.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import cannot
from tests.qubes import opening_kit, reading_kit
from tests.qubes.disposables import Machine
from tests.qubes.kit import QubesSite
from tests.qubes.qubesd import Qubesd

REAL = os.environ.get("QUBESADMIN", "")
"""A folder that holds the real qubesadmin, if it is not installed."""
CORE_ADMIN = os.environ.get("COREADMIN", "")
"""A folder of core-admin's sources: the import script and qubesd-query are the real ones then."""


@pytest.fixture
def qubesd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Qubesd]:
    """qubesd, and a qubesadmin that finds it."""
    if REAL:
        monkeypatch.syspath_prepend(REAL)
    elif importlib.util.find_spec("qubesadmin") is None:
        monkeypatch.syspath_prepend(str(Path(__file__).parent / "standin"))
    release = (Path(CORE_ADMIN) / "version").read_text()[:3] if CORE_ADMIN else "4.3"
    server = Machine(tmp_path / "qubesd", Path(CORE_ADMIN) if CORE_ADMIN else None, release)
    monkeypatch.setenv("PATH", str(server.programs), prepend=os.pathsep)
    module = importlib.import_module("qubesadmin")
    config = importlib.import_module("qubesadmin.config")
    monkeypatch.setattr(config, "QUBESD_SOCKET", str(server.socket))
    monkeypatch.setattr(config, "QREXEC_SERVICES_DIR", str(server.services))
    monkeypatch.setattr(config, "QREXEC_CLIENT", str(server.client))
    if hasattr(module, "app"):
        monkeypatch.setattr(module, "Qubes", module.app.QubesLocal)
    yield server
    server.close()
    for name in [name for name in sys.modules if name.split(".")[0] == "qubesadmin"]:
        del sys.modules[name]


@pytest.fixture
def qubes(btrfs_folder: Path, qubesd: Qubesd) -> QubesSite:
    """A machine with dom0, a template, two qubes, a disposable, and a backup VM; volumes are files
    of driver file-reflink.
    """
    return QubesSite(btrfs_folder / "site", qubesd)


@pytest.fixture
def disposable(qubes: QubesSite, monkeypatch: pytest.MonkeyPatch) -> reading_kit.Reading:
    """A disposable that may read from the backup VM."""
    return reading_kit.set_up(qubes, monkeypatch)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What sparsebak-vm puts into a template."""
    root = tmp_path_factory.mktemp("template")
    subprocess.run(
        ["make", "-s", "install-vm", f"DESTDIR={root}"], cwd=opening_kit.ROOT, check=True
    )
    (root / "usr/bin/sparsebak").write_text(opening_kit.COMMAND.format(root / "usr/lib/sparsebak"))
    return root


@pytest.fixture
def opened(qubes: QubesSite, installed: Path) -> opening_kit.Opened:
    """A machine whose disposables may show sessions."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        cannot("mounting needs root and /dev/fuse")
    return opening_kit.Opened(qubes, installed)

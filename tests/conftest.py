# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: a site (agent, archive and pool in one folder) on plain files, Btrfs and XFS."""

import contextlib
import gc
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from backup_vm.jobs import guard
from tests.faultfs import FaultFS, missing
from tests.kit import Site
from tests.own_mounts import own_mounts
from tests.patience import until

if TYPE_CHECKING:
    from tests.commands import Commands

CI = os.environ.get("CI") == "true"
if "SPARSEBAK_VM" not in os.environ:
    # No test in the VM uses hypothesis, and importing it takes seconds there.
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "project", deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
    )
    settings.load_profile("project")


def pytest_configure() -> None:
    own_mounts()
    # Thousands of children are forked from a process of some hundred MiB: their garbage collectors
    # leave alone what was there before, for they would write to every page, which is copied then.
    os.register_at_fork(after_in_child=gc.freeze)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


SKIPS = os.environ.get("SPARSEBAK_SKIPS")
"""A file to which a line is added for each reason why tests were skipped; ``make test`` ends with
them.
"""


class Elsewhere(pytest.skip.Exception):
    """What a test needs can be had on some machines only: skipped in CI, too."""


def elsewhere(reason: str) -> NoReturn:
    """Skip a test that CI's machines need not be able to run."""
    raise Elsewhere(reason)


def cannot(reason: str) -> NoReturn:
    """What a test needs is not here: skipped on a user's machine, a failure in CI, as any other
    skip.
    """
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    expected = hasattr(report, "wasxfail") or (
        call.excinfo and call.excinfo.errisinstance(Elsewhere)
    )
    if CI and report.skipped and call.excinfo and not expected:
        report.outcome = "failed"
        report.longrepr = f"CI must be able to run this: {call.excinfo.value}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"CI must be able to run this: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(
        str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        for report in terminalreporter.stats.get("skipped", ())
    )
    if SKIPS and reasons:
        with open(SKIPS, "a") as file:
            for reason, count in reasons.items():
                for named in ("Skipped: ", f"{__name__}.{Elsewhere.__name__}: "):
                    reason = reason.removeprefix(named)
                print(f"{reason} ({count})", file=file)


def mounted(
    image: Path, folder: Path, size: int, make: list[str], options: str = "loop"
) -> Iterator[Path]:
    """A fresh file system in a file, mounted while the test runs."""
    if os.geteuid() != 0:
        cannot("mounting a file system needs root")
    if shutil.which(make[0]) is None:
        cannot(f"{make[0]} is not installed")
    image = in_memory(image)
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run([*make, image], check=True, capture_output=True)
    folder.mkdir()
    done = subprocess.run(["mount", "-o", options, image, folder], capture_output=True, text=True)
    if done.returncode:
        cannot(f"cannot mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # A process that was killed a moment ago may not have let go of it yet.
        until(lambda: not subprocess.run(["umount", folder], check=False).returncode)
        image.unlink()


def in_memory(image: Path) -> Path:
    """Where to keep the image of a disk: in memory, where there is room, since syncing a real disk
    takes most of a test.
    """
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 4 << 30:
        return image
    return memory / f"sparsebak-{os.getpid()}-{image.parent.name}-{image.name}"


def folder_in_memory(name: str) -> Iterator[Path]:
    """A folder whose files are in memory where there is room: what is synced thousands of times
    does not wait for a disk.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2 << 30
    folder = Path(tempfile.mkdtemp(prefix=f"sparsebak-{name}-", dir=memory if roomy else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def quick_folder() -> Iterator[Path]:
    """Such a folder, for one test."""
    yield from folder_in_memory("test")


@dataclass(frozen=True)
class QuickFolders:
    """Makes such folders, one for each example of a property."""

    folder: Path

    def mktemp(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))


@pytest.fixture
def quick_folders(quick_folder: Path) -> QuickFolders:
    return QuickFolders(quick_folder)


FILE_SYSTEMS = {
    "btrfs": (["mkfs.btrfs", "-q"], "loop"),
    "btrfs-zstd": (["mkfs.btrfs", "-q"], "loop,compress-force=zstd"),
    "xfs": (["mkfs.xfs", "-q", "-m", "reflink=1"], "loop"),
}


@pytest.fixture(params=list(FILE_SYSTEMS))
def reflink_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a real Btrfs or XFS."""
    make, options = FILE_SYSTEMS[request.param]
    yield from mounted(tmp_path / "fs.img", tmp_path / "fs", 400 << 20, make, options)


@pytest.fixture
def btrfs_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a real Btrfs."""
    yield from mounted(tmp_path / "fs.img", tmp_path / "fs", 400 << 20, *FILE_SYSTEMS["btrfs"])


@pytest.fixture
def compressed_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a real Btrfs that compresses everything."""
    make, options = FILE_SYSTEMS["btrfs-zstd"]
    yield from mounted(tmp_path / "fs.img", tmp_path / "fs", 400 << 20, make, options)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small ext4 file system of its own, to be filled up."""
    yield from mounted(tmp_path / "small.img", tmp_path / "small", 48 << 20, ["mkfs.ext4", "-q"])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site with one volume, work/private, on the source ``file``; sealed, chunks of 64 KiB."""
    return Site(tmp_path / "site")


@pytest.fixture
def reflink_site(reflink_folder: Path) -> Site:
    """The same on a real Btrfs or XFS, with the source ``reflink``."""
    return Site(reflink_folder / "site", driver="reflink")


@pytest.fixture
def commands_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> "Callable[[Site], Commands]":
    """Makes Commands for a site."""
    from tests.commands import Commands

    def make(site: Site) -> Commands:
        monkeypatch.setenv("SPARSEBAK_ARCHIVE", str(site.archive))
        monkeypatch.setenv("SPARSEBAK_AGENT", f"local:{site.config}")
        # What tests prune was stored a moment ago; run/test_guard.py has the guard on new sessions.
        monkeypatch.setattr(guard, "AGE", 0)
        commands = Commands(site, capsys)
        commands.settings("")
        return commands

    return make


@pytest.fixture
def commands(site: Site, commands_for: "Callable[[Site], Commands]") -> "Commands":
    """The commands for the site of the test."""
    return commands_for(site)


@pytest.fixture
def faultfs(tmp_path: Path) -> Iterator[FaultFS]:
    """A folder that fails where it is to; see tests/faultfs.py. ``faultfs.path`` is it."""
    with fault_system(tmp_path / "faultfs") as system:
        yield system


@contextlib.contextmanager
def fault_system(folder: Path, *options: str) -> Iterator[FaultFS]:
    """The same with options of its own."""
    reason = missing()
    if reason:
        cannot(reason)
    system = FaultFS(folder, *options)
    try:
        yield system
    finally:
        system.close()

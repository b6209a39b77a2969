# SPDX-License-Identifier: GPL-2.0-or-later
"""What cp makes of files that a child names as it likes, and of a target that cannot hold them."""

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backup_vm.errors import SparsebakError
from backup_vm.files.answers import Stat
from backup_vm.files.copying import Copier
from backup_vm.files.session import Found
from tests.files.kit import told

ROOT = Path(__file__).parent.parent.parent


class Folder:
    """Files of a session that are not in any image."""

    name, damaged = "it", False

    def __init__(self, found: list[tuple[int, Found]], fail: BaseException | None = None) -> None:
        self._found, self._fail = found, fail

    def walk(self, top: Found, trouble: Any) -> Iterator[tuple[int, Found]]:
        yield from self._found

    def contents(self, found: Found) -> Iterator[tuple[int, bytes]]:
        yield 0, b"12"
        if self._fail is not None:
            raise self._fail
        yield 2, b"345"

    def attributes(self, node: int) -> dict[str, bytes]:
        return {}

    def link(self, node: int) -> bytes:
        return b"../../outside"


def found(path: bytes, mode: int, node: int = 7, size: int = 5) -> Found:
    return Found(path, node, Stat(mode, 1, 0, 0, size, 0, 0, 0, 0, 0))


def test_a_link_of_the_image_leads_nothing_out_of_the_target(tmp_path: Path) -> None:
    """The child could say that a folder is below a link that it named before."""
    (tmp_path / "outside").mkdir()
    inside = [
        (1, found(b"/d/x", 0o120777)),
        (1, found(b"/d/x", 0o40755, 8)),
        (2, found(b"/d/x/f", 0o100644)),
    ]
    files: Any = Folder(inside)
    said: list[str] = []
    done = Copier(files, said.append, True, lambda size: None).copy(
        found(b"/d", 0o40755), tmp_path / "out"
    )
    assert done.troubles == 1 and said == ["/d/x: cannot be made here: File exists"]
    assert os.listdir(tmp_path / "out") == ["x"] and not os.listdir(tmp_path / "outside")
    assert os.readlink(tmp_path / "out/x") == "../../outside"


@pytest.mark.parametrize(
    "bad",
    [
        found(b"/d/" + b"n" * 256, 0o100644),
        found(b"/d/" + b"n" * 256, 0o40755),
        found(b"/d/" + b"n" * 256, 0o120777),
        found(b"/d/big", 0o100644, size=1 << 62),
        found(b"/d/a", 0o100644),
        found(b"/d/a", 0o120777),
    ],
)
def test_a_file_that_cannot_be_made_here_costs_no_other(bad: Found, tmp_path: Path) -> None:
    """Too large, too long, or a name that is the same here: as on a stick with FAT."""
    inside = [(1, found(b"/d/a", 0o100644)), (1, bad)]
    if stat.S_ISDIR(bad.stat.mode):
        inside += [(2, found(bad.path + b"/below", 0o100644))]
    inside += [(1, found(b"/d/z", 0o100644))]
    said: list[str] = []
    files: Any = Folder(inside)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, before[1]))
    try:
        done = Copier(files, said.append, False, lambda size: None).copy(
            found(b"/d", 0o40755), tmp_path / "out"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (done.files, done.troubles) == (2, 1) and "cannot be made here" in said[0]
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "z"]
    assert {path.read_bytes() for path in (tmp_path / "out").iterdir()} == {b"12345"}


def test_without_its_owner_nothing_runs_as_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where root may give nothing to others, as on FAT and over NFS."""

    def refused(*what: object, **more: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.geteuid", lambda: 0)
    for call in ("chown", "fchown"):
        monkeypatch.setattr(f"os.{call}", refused)
    files: Any = Folder([(1, found(b"/d/run", 0o106755)), (1, found(b"/d/link", 0o120777))])
    done = Copier(files, told_text, True, lambda size: None).copy(
        found(b"/d", 0o40755), tmp_path / "out"
    )
    assert done.files == 2 and done.limited == {"owners"}
    assert stat.S_IMODE((tmp_path / "out/run").stat().st_mode) == 0o755


def told_text(text: str) -> None:
    told(b"", text)


CUT_OFF = """
import errno, os, sys
from pathlib import Path
from tests.files.test_copying import Copier, Folder, SparsebakError, found
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
full = OSError(errno.ENOSPC, "No space left on device")
inside = [
    (1, found(b"/d/r", 0o40555)),
    (2, found(b"/d/r/n", 0o40000, 8)),
    (3, found(b"/d/r/n/link", 0o120777)),
    (1, found(b"/d/f", 0o100644)),
]
try:
    Copier(Folder(inside, full), print, False, print).copy(found(b"/d", 0o40755), Path(sys.argv[1]))
except SparsebakError as error:
    print(error)
"""


def test_folders_that_may_not_be_changed_are_removed_too(tmp_path: Path) -> None:
    """As somebody who is not root, to whom a mode means something."""
    os.chmod(tmp_path, 0o777)
    target = tmp_path / "there"
    target.mkdir()
    target.chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-c", CUT_OFF, "out"],
        cwd=target,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "No space left" in done.stdout and not os.listdir(target)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_copy_that_is_cut_off_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    files: Any = Folder([(1, found(b"/d/f", 0o100644))], error)
    for top in (found(b"/d", 0o40755), found(b"/f", 0o100644)):
        with pytest.raises((KeyboardInterrupt, SparsebakError)):
            Copier(files, told_text, False, lambda size: None).copy(top, tmp_path / "out")
        assert not os.listdir(tmp_path)

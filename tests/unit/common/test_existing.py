# SPDX-License-Identifier: GPL-2.0-or-later
"""What cannot be looked at is never taken for what is not there, whatever Python's pathlib says."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.existing import children, exists, is_dir, is_file
from dom0_agent.tracking import identities
from dom0_agent.tracking.state import known_volumes

ROOT = Path(__file__).parent.parent.parent.parent
LOOKS: tuple[Callable[[Path], Any], ...] = (exists, is_file, is_dir, children)


def fail(monkeypatch: pytest.MonkeyPatch, place: Path, code: int) -> None:
    """Let the disk fail where somebody looks at a file or a folder."""
    for name in ("stat", "listdir", "scandir"):
        real = getattr(os, name)

        def failing(path: Any, *more: Any, real: Any = real, **named: Any) -> Any:
            if isinstance(path, str | os.PathLike) and Path(path) == place:
                raise OSError(code, os.strerror(code), str(path))
            return real(path, *more, **named)

        monkeypatch.setattr(os, name, failing)


def test_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    file, folder, loop = tmp_path / "file", tmp_path / "folder", tmp_path / "loop"
    file.touch()
    folder.mkdir()
    loop.symlink_to(loop)
    (tmp_path / "link").symlink_to(folder)
    places = (file, folder, tmp_path / "link", loop, file / "below", tmp_path / "nul\0")
    assert [exists(one) for one in places] == [True, True, True, False, False, False]
    assert [is_file(one) for one in places] == [True, False, False, False, False, False]
    assert [is_dir(one) for one in places] == [False, True, True, False, False, False]
    assert children(tmp_path) == [file, folder, tmp_path / "link", loop]
    assert children(file) == children(tmp_path / "none") == []


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("look", LOOKS)
def test_what_cannot_be_looked_at_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], Any], code: int
) -> None:
    fail(monkeypatch, tmp_path / "it", code)
    with pytest.raises(OSError, match="it") as raised:
        look(tmp_path / "it")
    assert raised.value.errno == code


def test_that_dom0_once_wrote_what_qubes_are_called_is_not_forgotten_where_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, identities.written(tmp_path), errno.EIO)
    with pytest.raises(OSError, match="identities.written"):
        identities.load(tmp_path)


@pytest.mark.parametrize("unread", ["volumes", "volumes/qube", "volumes/qube/private"])
def test_no_volume_is_forgotten_whose_folder_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: str
) -> None:
    (tmp_path / "volumes/qube/private").mkdir(parents=True)
    assert len(list(known_volumes(tmp_path))) == 1
    fail(monkeypatch, tmp_path / unread, errno.EIO)
    with pytest.raises(OSError, match=unread):
        list(known_volumes(tmp_path))


def test_nobody_asks_pathlib() -> None:
    """A path's own methods take no argument; those of a storage take a name."""
    asked = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in ("backup_vm", "dom0_agent", "common", "wire")
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in path.read_text().splitlines()
        if any(f".{method}()" in line for method in ("exists", "is_file", "is_dir"))
    ]
    assert asked == []

# SPDX-License-Identifier: GPL-2.0-or-later
"""~ and small files."""

import os
import pwd
from pathlib import Path

import pytest

from backup_vm.errors import UsageError
from backup_vm.paths import expanded, home, read_small


def test_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~") == "/home/me" and expanded("~/a b/~") == "/home/me/a b/~"
    assert expanded("~root/x") == pwd.getpwnam("root").pw_dir + "/x"
    for plain in ("", "a~", "./~", "/~/x", "sftp://host/~/x", "local:~"):
        assert expanded(plain) == plain
    with pytest.raises(UsageError, match="~nobody-of-that-name"):
        expanded("~nobody-of-that-name/x")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for variable in ("", None):
        if variable is None:
            monkeypatch.delenv("HOME")
        else:
            monkeypatch.setenv("HOME", variable)
        assert home() is None
        with pytest.raises(UsageError, match="no home folder"):
            expanded("~/x")


def test_small_files(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 10)
    assert read_small(tmp_path / "f", 10, "it") == b"x" * 10
    assert read_small(Path(os.devnull), 10, "it") == b""
    with pytest.raises(UsageError, match="too large to be settings"):
        read_small(tmp_path / "f", 9, "settings")
    os.mkfifo(tmp_path / "p")
    for odd in (tmp_path / "p", Path("/dev/zero"), tmp_path):
        with pytest.raises((UsageError, IsADirectoryError)):
            read_small(odd, 10, "it")
    for odd in (tmp_path, Path("/proc/self/mem")):  # no file, and one that cannot be read
        with pytest.raises(OSError) as raised:
            read_small(odd, 10, "it")
        assert raised.value.filename == str(odd)
    reading, writing = os.pipe()
    os.write(writing, b"secret\n")
    os.close(writing)
    assert read_small(Path(f"/dev/fd/{reading}"), 10, "it", pipes=True) == b"secret\n"
    with pytest.raises(UsageError, match="too large"):
        read_small(Path("/dev/zero"), 1 << 16, "it", pipes=True)
    os.close(reading)

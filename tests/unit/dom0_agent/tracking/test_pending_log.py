# SPDX-License-Identifier: GPL-2.0-or-later
import errno
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.tracking.pending_log import LogDamaged, PendingLog
from wire.status import Code, Refused

groups = st.lists(st.tuples(st.integers(1, 30), st.sets(st.integers(0, 29))), max_size=6)


def fresh(tmp_path_factory: object) -> Path:
    folder: Path = tmp_path_factory.mktemp("log")  # type: ignore[attr-defined]
    return folder / "log"


def write(path: Path, parts: list[tuple[int, set[int]]]) -> list[tuple[int, bytes]]:
    log, entries = PendingLog(path), []
    for length, changed in parts:
        start = log.position
        new = [(start + at, bytes([at]) * 32) for at in sorted(changed) if at < length]
        log.append(start + length, new)
        entries += new
    log.flush()
    log.close()
    return entries


@given(groups)
def test_what_was_logged_is_read_back(
    tmp_path_factory: object, parts: list[tuple[int, set[int]]]
) -> None:
    path = fresh(tmp_path_factory)
    entries = write(path, parts)
    log = PendingLog(path)
    assert list(log.entries()) == entries
    assert log.position == sum(length for length, _ in parts)
    log.close()


@given(groups, st.integers(0, 200))
def test_rewinding_forgets_all_from_there_on(
    tmp_path_factory: object, parts: list[tuple[int, set[int]]], to: int
) -> None:
    path = fresh(tmp_path_factory)
    entries = write(path, parts)
    log = PendingLog(path)
    end = log.position
    log.rewind(to)
    assert log.position == min(to, end)
    assert list(log.entries()) == [entry for entry in entries if entry[0] < to]
    log.append(log.position + 1, [(log.position, b"n" * 32)])
    assert list(log.entries())[-1][1] == b"n" * 32
    log.close()


@given(groups, st.data())
def test_damage_ends_the_log_before_it(
    tmp_path_factory: object, parts: list[tuple[int, set[int]]], data: st.DataObject
) -> None:
    path = fresh(tmp_path_factory)
    entries = write(path, parts)
    raw = path.read_bytes()
    if not raw:
        return
    at = data.draw(st.integers(0, len(raw) - 1))
    path.write_bytes(
        data.draw(
            st.sampled_from(
                [raw[:at], raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :], raw + raw[:at]]
            )
        )
    )
    log = PendingLog(path)
    assert list(log.entries()) == [entry for entry in entries if entry[0] < log.position]
    log.close()


@given(groups, st.integers(0, 12), st.booleans())
def test_a_write_that_fails_or_is_short_loses_nothing(
    tmp_path_factory: object, parts: list[tuple[int, set[int]]], failing: int, fully: bool
) -> None:
    """The n-th write fails, after it took a part or nothing; what is read later is a beginning of
    what was logged.
    """
    path, real, count, entries = fresh(tmp_path_factory), os.pwrite, 0, []

    def pwrite(fd: int, data: bytes, at: int) -> int:
        nonlocal count
        count += 1
        if count == failing:
            if fully:
                raise OSError(errno.ENOSPC, "full")
            return real(fd, data[: len(data) // 2 or 1], at)
        if count == failing + 1 and not fully:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, data, at)

    log = PendingLog(path)
    with mock.patch("os.pwrite", pwrite):
        try:
            for length, changed in parts:
                start = log.position
                new = [(start + at, bytes([at]) * 32) for at in sorted(changed) if at < length]
                entries += new
                log.append(start + length, new)
                log.flush()
        except OSError:
            again = PendingLog(copy(path))
            assert list(again.entries()) == [e for e in entries if e[0] < again.position]
            again.close()
            log.flush()  # there is room now: nothing was dropped
            assert list(log.entries()) == entries
    log.close()
    again = PendingLog(path)
    assert list(again.entries()) == [entry for entry in entries if entry[0] < again.position]
    again.close()


def copy(path: Path) -> Path:
    return Path(shutil.copy(path, path.with_name("copy")))


def test_a_log_that_reads_back_shorter_gives_no_root(tmp_path: Path) -> None:
    log = PendingLog(tmp_path / "log")
    for at in range(4):
        log.append(at + 1, [(at, bytes([at]) * 32)])
        log.flush()
    os.truncate(tmp_path / "log", (tmp_path / "log").stat().st_size - 1)
    with pytest.raises(LogDamaged):
        list(log.entries())
    log.close()


def test_a_bad_sector_ends_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, real = PendingLog(tmp_path / "log"), os.pread
    for at in range(4):
        log.append(at + 1, [(at, bytes([at]) * 32)])
        log.flush()
    log.close()
    third = 2 * (tmp_path / "log").stat().st_size // 4

    def pread(fd: int, length: int, at: int) -> bytes:
        if at <= third < at + length:
            raise OSError(errno.EIO, "bad")
        return real(fd, length, at)

    monkeypatch.setattr(os, "pread", pread)
    log = PendingLog(tmp_path / "log")
    assert log.position == 2 and [at for at, _ in log.entries()] == [0, 1]
    log.close()


def test_what_could_not_be_synced_is_not_there_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, "bad")

    log = PendingLog(tmp_path / "log")
    log.append(3, [(1, b"x" * 32)])
    with monkeypatch.context() as broken, pytest.raises(OSError):
        broken.setattr(os, "fsync", fsync)
        log.sync()
    log.close()
    log = PendingLog(tmp_path / "log")
    assert log.position == 0
    log.close()


def test_the_log_is_locked_while_in_use(tmp_path: Path) -> None:
    log = PendingLog(tmp_path / "log")
    with pytest.raises(Refused) as refused:
        PendingLog(tmp_path / "log")
    assert refused.value.code == Code.BUSY
    log.close()
    PendingLog(tmp_path / "log").close()

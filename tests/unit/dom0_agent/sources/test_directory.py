# SPDX-License-Identifier: GPL-2.0-or-later
"""Storage that fails: every error is a refusal with a code, and leaves nothing behind."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import image_writer as images
from dom0_agent.admin.held import held
from dom0_agent.config import Pool, Volume
from dom0_agent.sources import Unreadable, lvm, programs
from dom0_agent.sources import file as file_source
from dom0_agent.sources.file import FileSource
from dom0_agent.targets.file import FileReplacement
from dom0_agent.tracking import rotation
from tests.kit import GRAIN, Site, fill
from wire.status import Code, Refused


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    (tmp_path / "work.img").write_bytes(b"contents " * 50_000)
    return FileSource(Volume("work", "private", Pool("p", "file", tmp_path), "work.img"))


def refused(action: Callable[[], object], code: Code = Code.SOURCE_FAILED) -> str:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.code == code
    return str(caught.value)


def test_an_image_that_is_none(source: FileSource) -> None:
    source.image.unlink()
    assert "cannot open" in refused(source.live_size)
    source.image.mkdir()
    assert "not a regular file" in refused(source.live_size)
    source.image.rmdir()
    source.image.symlink_to("/etc/hostname")
    assert "cannot open" in refused(lambda: source.snapshot(1))


def test_the_image_of_a_qube_that_is_shut_down_just_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, dirty = tmp_path / "private.img", tmp_path / "private-dirty.img"
    place = Volume("work", "private", Pool("p", "file", tmp_path), image.name, live=dirty.name)
    image.write_bytes(b"as it was started")
    dirty.write_bytes(b"as it is now")
    real = os.open

    def shut_down(path: Path, *how: Any, **more: Any) -> int:
        if path == dirty:
            os.replace(dirty, image)
        return real(path, *how, **more)

    assert FileSource(place).live_size() == len(b"as it is now")
    monkeypatch.setattr(os, "open", shut_down)
    for _ in range(2):
        assert FileSource(place).live_size() == len(b"as it is now")
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, Code.NO_SPACE), (errno.EIO, Code.SOURCE_FAILED)]
)
def test_a_snapshot_that_fails_leaves_nothing(
    source: FileSource, monkeypatch: pytest.MonkeyPatch, number: int, code: Code
) -> None:
    monkeypatch.setattr(source, "_copy", failing(number))
    refused(lambda: source.snapshot(1), code)
    assert source.snapshots() == set()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(source, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        source.snapshot(1)
    assert source.snapshots() == set()


def test_copies_across_file_systems(source: FileSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", failing(errno.EXDEV))
    source.snapshot(1)
    with open(source.open(1), "rb") as snapshot:
        assert snapshot.read() == source.image.read_bytes()
    monkeypatch.setattr(os, "copy_file_range", failing(errno.EIO))
    refused(lambda: source.snapshot(2))
    monkeypatch.setattr(file_source, "_copy_range", lambda *_: 0)  # the image shrank meanwhile
    source.snapshot(3)
    assert source.snapshots() == {1, 3} and held(source) > 0


def test_snapshots_are_read_where_direct_reading_is_not_possible(
    source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.snapshot(1)
    original = os.open

    def no_direct(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct reading here")
        return original(path, flags, *rest)

    monkeypatch.setattr(os, "open", no_direct)
    os.close(source.open(1, direct=True))
    assert "snapshot 2" in refused(lambda: source.open(2, direct=True))


def test_a_file_that_cannot_tell_its_holes_fails(
    source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.snapshot(1)
    fd = source.open(1)
    monkeypatch.setattr(os, "lseek", failing(errno.EIO))
    with pytest.raises(Unreadable, match="Input/output"):
        list(source.data_ranges(fd, 0, 1000))
    os.close(fd)


def test_new_contents_that_cannot_be_written(
    source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = source.image.read_bytes()
    target = FileReplacement(source, 5000)
    monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))
    refused(lambda: target.write(1, [b"x"]), Code.NO_SPACE)
    refused(lambda: target.write(0, [bytes(4096)]), Code.NO_SPACE)
    target.discard()
    monkeypatch.undo()
    target = FileReplacement(source, 5000)
    target.write(0, [b"new"])
    monkeypatch.setattr(os, "replace", failing(errno.EROFS))
    assert "cannot replace" in refused(target.commit)
    source.drop_unfinished()
    assert source.image.read_bytes() == before and len(list(source.image.parent.iterdir())) == 1
    monkeypatch.setattr(os, "open", failing(errno.EACCES))
    assert "cannot write beside" in refused(lambda: FileReplacement(source, 1))


def test_new_contents_keep_owner_and_mode(source: FileSource) -> None:
    if os.geteuid() == 0:
        os.chown(source.image, 1234, 1234)
    source.image.chmod(0o640)
    for _ in range(2):
        target = FileReplacement(source, 10)
        target.write(0, [b"new"])
        target.commit()
        status = source.image.stat()
        assert source.image.read_bytes() == b"new".ljust(10, b"\0")
        assert status.st_mode & 0o777 == 0o640 and (os.geteuid() != 0 or status.st_uid == 1234)
    source.image.unlink()
    target = FileReplacement(source, 10)
    target.commit()
    assert source.image.read_bytes() == bytes(10)


def test_images_are_written_where_direct_writing_is_not_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = images.ImageWriter(tmp_path / "image", 10_000)
    original = os.pwrite

    def no_direct(fd: int, data: Any, offset: int) -> int:
        if fd == writer._direct:
            raise OSError(errno.EINVAL, "not aligned enough")
        return original(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", no_direct)
    writer.write(4096, [b"a" * 4096])
    writer.write(1, [b"b", b"c"])
    writer.close()
    assert (tmp_path / "image").read_bytes() == (b"\0bc".ljust(4096, b"\0") + b"a" * 4096).ljust(
        10_000, b"\0"
    )
    original_open = os.open

    def open_once(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL if "one" in str(path) else errno.EIO, "no")
        return original_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", open_once)
    writer = images.ImageWriter(tmp_path / "one", 5000)
    writer.write(0, [b"x" * 4096])
    writer.close()
    writer.close()
    with pytest.raises(OSError, match="no"):
        images.ImageWriter(tmp_path / "two", 5000)


def test_a_report_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for nonsense in ("", "{}", '{"report": []}', '{"report": [{"lv": [7]}]}'):
        monkeypatch.setattr(programs, "run", lambda *_, text=nonsense: text)
        assert "invalid report" in refused(lvm.report)


def test_an_lvm_report_with_chatter_and_foreign_volumes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a real lvs prints it, with a line in the middle of it, a hidden volume, and one that
    nobody can make sense of.
    """
    thin = {"thin_id": "", "data_percent": "", "metadata_percent": "", "vg_extent_size": "4194304"}
    thin |= {"vg_name": "dom0", "pool_lv": "", "chunk_size": "0", "zero": "unknown", "discards": ""}
    pool = {"lv_name": "vm-pool", "lv_attr": "twi-aotz--", "lv_size": "629145600", "zero": "1"}
    volumes: list[dict[str, str]] = [
        {"vg_name": "other", "lv_name": "raid", "pool_lv": "", "lv_size": "unknown"},
        thin | {"lv_name": "[vm-pool_tmeta]", "lv_size": "4194304", "lv_attr": "ewi-ao----"},
        thin | pool | {"data_percent": "-1.00", "metadata_percent": "10.84"},
        thin
        | {"lv_name": "vm-work-private", "pool_lv": "[vm-pool]", "thin_id": "1"}
        | {"lv_size": "12582912", "lv_attr": "Vwi-a-tz--", "data_percent": "0.00"},
    ]
    chatter = "  Retrying metadata scan.\n"
    lines = (",\n" + chatter).join(f"                  {json.dumps(one)}" for one in volumes)
    printed = f"""  WARNING: Device /dev/sdz not found.
  {{
{chatter}      "report": [
          {{
              "lv": [
{lines}
              ]
          }}
      ]
      ,
      "log": [
      ]
  }}
"""
    program = tmp_path / "lvs"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\n")
    program.chmod(0o755)
    original = programs.run
    monkeypatch.setattr(programs, "run", lambda *words: original(str(program), *words[1:]))
    found = lvm.report()
    assert set(found) == {
        ("dom0", "vm-pool_tmeta"),
        ("dom0", "vm-pool"),
        ("dom0", "vm-work-private"),
    }
    assert found["dom0", "vm-work-private"].pool == "vm-pool"
    assert found["dom0", "vm-pool"].data_percent == 100, "what is not known is not taken for room"


def test_a_volume_too_large_for_its_record_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be stored, and every reader would refuse it."""
    monkeypatch.setattr(rotation, "MAX_VOLUME_SIZE", 5 * GRAIN)
    fill(site.image(), 5 * GRAIN)
    site.backup()
    fill(site.image(), 5 * GRAIN + 1)
    with pytest.raises(AssertionError, match="work/private"):
        site.backup()
    assert len(site.snapshots()) == 1

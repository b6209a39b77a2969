# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak files tar``: what GNU tar, Python and a careful reader make of it."""

import io
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.errors import DamagedError
from backup_vm.files import tar
from backup_vm.files.answers import NOWHERE, Extents, FileSystemError, Stat
from backup_vm.files.session import Found
from backup_vm.files.tar import TarWriter
from tests.commands import Commands
from tests.conftest import cannot
from tests.files import trees
from tests.files.kit import files_of, must_be_same
from tests.files.test_commands import key


def told_text(text: str) -> None:
    raise AssertionError(text)


class Image:
    """Files that are in no image: by path, with contents in pieces at their offsets."""

    name, damaged = "it", False

    def __init__(self) -> None:
        self.rows: list[Found] = []
        self.pieces: dict[int, list[tuple[int, bytes]]] = {}
        self.fails: dict[int, tuple[int, Exception]] = {}
        self.kept: dict[int, dict[str, bytes]] = {}

    def add(
        self, path: bytes, mode: int = 0o100644, size: int = 0, links: int = 1, node: int = 0
    ) -> int:
        node = node or len(self.rows) + 10
        about = Stat(mode, links, 1000, 100, size, 3, 1_700_000_000_123_456_789, 5, 0, 0)
        self.rows.append(Found(path, node, about))
        return node

    def walk(self, top: Found, trouble: Any) -> Iterator[tuple[int, Found]]:
        for found in self.rows:
            yield found.path.count(b"/"), found

    def extents(self, found: Found) -> Extents:
        extents = Extents()
        for offset, data in self.pieces.get(found.node, []):
            extents.add(offset, len(data), NOWHERE)
        return extents

    def contents(self, found: Found, extents: Extents) -> Iterator[tuple[int, bytes]]:
        after, error = self.fails.get(found.node, (-1, None))
        for number, piece in enumerate(self.pieces.get(found.node, [])):
            if number == after and error is not None:
                raise error
            yield piece

    def attributes(self, node: int) -> dict[str, bytes]:
        return self.kept.get(node, {})

    def link(self, node: int) -> bytes:
        return b"../../outside\xff"


TOP = Found(b"/d", 1, Stat(0o40755, 2, 0, 0, 0, 0, 0, 0, 0, 0))


def written(image: Image, tell: Any = told_text, privileged: bool = True) -> tuple[bytes, Any]:
    out = io.BytesIO()
    files: Any = image
    done = TarWriter(files, out.write, tell, privileged).write(TOP)
    return out.getvalue(), done


def members(data: bytes) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as read:
        for one in read:
            body = read.extractfile(one) if one.isreg() else None
            found[one.name] = one, body.read() if body else b""
    return found


@given(
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 150_000)), max_size=6),
    st.integers(0, 300_000),
)
def test_contents_with_holes_come_back(gaps: list[tuple[int, int]], tail: int) -> None:
    image, whole = Image(), bytearray()
    pieces = []
    for gap, length in gaps:
        whole += bytes(gap)
        data = random.Random(length).randbytes(length)
        pieces.append((len(whole), data))
        whole += data
    whole += bytes(tail)
    image.pieces[image.add(b"/d/f", size=len(whole))] = pieces
    data, done = written(image)
    info, body = members(data)["d/f"]
    assert body == whole and info.size == len(whole)
    assert info.mtime == pytest.approx(1_700_000_000.123456789)
    assert len(data) % (20 * tar.BLOCK) == 0 and done.size == len(whole)
    holes = len(whole) - sum(length for _, length in gaps)
    assert holes < 64 << 10 or len(data) < len(whole) + 20_000, "holes take no room"


@given(st.lists(st.binary(min_size=1, max_size=40), unique=True, max_size=5))
def test_any_name_comes_back(names: list[bytes]) -> None:
    names = [one for one in names if b"/" not in one and b"\0" not in one]
    names = [one for one in names if one not in (b".", b"..")]
    image = Image()
    for name in names:
        image.add(b"/d/" + name)
        image.add(b"/d/" + name + b"-" + name * 8, 0o120777)
    found = members(written(image)[0])
    assert {os.fsencode(name) for name in found} == {
        b"d",
        *(b"d/" + one for one in names),
        *(b"d/" + one + b"-" + one * 8 for one in names),
    }
    links = [info.linkname for info, _ in found.values() if info.issym()]
    assert all(os.fsencode(one) == b"../../outside\xff" for one in links)


def test_a_file_that_cannot_be_read_is_left_out_and_a_large_one_cuts_it_off() -> None:
    image, said = Image(), list[str]()
    image.add(b"/d/a")
    bad = image.add(b"/d/bad", size=5)
    image.pieces[bad], image.fails[bad] = [(0, b"12"), (2, b"345")], (1, DamagedError("gone"))
    image.add(b"/d/z")
    data, done = written(image, said.append)
    assert set(members(data)) == {"d", "d/a", "d/z"}
    assert (done.troubles, said) == (1, ["/d/bad: gone"])
    large, piece = image.add(b"/d/large", size=3 * tar.AHEAD), bytes(tar.AHEAD)
    image.pieces[large] = [(at * tar.AHEAD, piece) for at in range(3)]
    image.fails[large] = (2, FileSystemError("is bad"))
    out = io.BytesIO()
    files: Any = image
    with pytest.raises(FileSystemError, match="/d/large: is bad; the tar file is cut off"):
        TarWriter(files, out.write, said.append, True).write(TOP)
    with pytest.raises(tarfile.ReadError):
        members(out.getvalue())


def test_what_gives_rights_is_left_out_unless_asked_for() -> None:
    image = Image()
    image.add(b"/d/run", 0o104755)
    image.add(b"/d/disk", stat.S_IFBLK | 0o660)
    image.add(b"/d/pipe", stat.S_IFIFO | 0o660)
    node = image.add(b"/d/able", 0o100755)
    image.kept[node] = {"security.capability": b"\1\0\0\2", "user.a=%": b"\xff\0v"}
    data, done = written(image, privileged=False)
    found = members(data)
    assert set(found) == {"d", "d/run", "d/able"} and done.left_out == 4
    assert found["d/run"][0].mode == 0o755
    kept = {k: v for k, v in found["d/able"][0].pax_headers.items() if "xattr" in k}
    assert kept == {"SCHILY.xattr.user.a%3D%25": os.fsdecode(b"\xff\0v")}
    found = members(written(image)[0])
    assert set(found) == {"d", "d/run", "d/able", "d/disk", "d/pipe"}
    assert found["d/run"][0].mode == 0o4755 and found["d/disk"][0].isblk()


def test_hard_links_are_links_to_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "_MOST_NAMES", 1)
    image = Image()
    for name in (b"/d/a", b"/d/b", b"/d/c"):
        image.pieces[image.add(name, size=2, links=3, node=7)] = [(0, b"hi")]
    for name in (b"/d/x", b"/d/y"):
        image.pieces[image.add(name, size=3, links=2, node=8)] = [(0, b"you")]
    found = members(written(image)[0])
    assert [found[f"d/{name}"][0].islnk() for name in "abc"] == [False, True, True]
    assert found["d/b"][0].linkname == found["d/c"][0].linkname == "d/a"
    assert found["d/x"][1] == b"you", "what is forgotten is written again, once there is room"


@pytest.mark.parametrize("form", ["ext4", "xfs"])
def test_gnu_tar_makes_the_same_files_of_it(form: str, tmp_path: Path) -> None:
    image, out = tmp_path / "image", tmp_path / "out"
    options = trees.made(image, form)
    with trees.mounted(image, *options) as folder:
        trees.fill(folder, many=100)
        for path in folder.rglob("*"):
            if stat.S_ISSOCK(path.lstat().st_mode):  # no tar file has these
                path.unlink()
    with files_of(image) as files, open(tmp_path / "x.tar", "wb") as file:
        done = TarWriter(files, file.write, told_text, True).write(files.find(b"/"))
    assert not done.troubles and not done.left_out
    out.mkdir()
    extract = ["tar", "-xp", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"]
    subprocess.run([*extract, "-f", tmp_path / "x.tar", "-C", out], check=True)
    with trees.mounted(image, *options, "ro") as folder:
        # where tests run, there may be no room for attributes as large as XFS has them
        must_be_same(folder, out, attributes=form == "ext4")
        compare = ["tar", "--compare", "-f", tmp_path / "x.tar", "-C", folder]
        subprocess.run(compare, check=True)


def test_what_the_command_says_and_how_it_ends(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, image = commands.site, commands.site.image()
    tree = tmp_path / "tree"
    (tree / "docs").mkdir(parents=True)
    (tree / "docs" / "a").write_text("one")
    (tree / "docs" / "large").write_bytes(random.Random(1).randbytes(6 << 20))
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin") or cannot("no mke2fs")
    subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", "-d", tree, image, "16M"], check=True)
    site.backup()
    words = ["--archive", site.archive, "files", "tar", "work/private", "docs", *key(commands)]
    command = [str(Path(sys.executable).with_name("sparsebak")), *map(str, words)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(members(done.stdout)) == {"docs", "docs/a", "docs/large"} and not done.stderr
    assert "no data for programs" in commands.fails(2, "--json", "files", "tar", "work/private")
    assert "has no /nothing" in commands.fails(
        1, "files", "tar", "work/private", "nothing", *key(commands)
    )
    # packs whose last part is gone: the large file cannot be read to its end
    for pack in site.archive.glob("packs/*/*.pack"):
        raw = pack.read_bytes()
        middle = len(raw) * 9 // 10
        pack.write_bytes(raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :])
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode in (3, 4), done.stderr
    assert b"Traceback" not in done.stderr and b"large" in done.stderr
    if done.returncode == 4:
        with pytest.raises(tarfile.ReadError):
            members(done.stdout)
    else:
        assert b"lacks 1 file" in done.stderr and "docs/large" not in members(done.stdout)


def test_memory_is_bounded_for_a_file_in_many_pieces_and_a_large_one(tmp_path: Path) -> None:
    """The files do not exist: pieces come from nowhere, and what is written goes there."""
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import resource
from tests.files.test_tar import Image, TOP
from backup_vm.files.answers import Extents, NOWHERE
from backup_vm.files.tar import TarWriter
class Large(Image):
    def extents(self, found):
        extents = Extents()
        for at in range(found.stat.size >> 13 if found.stat.size < 1 << 31 else 0):
            extents.add(at << 13, 4096, NOWHERE)
        if not len(extents):
            extents.add(0, found.stat.size, NOWHERE)
        return extents
    def contents(self, found, extents):
        for offset, length, _ in extents:
            for at in range(0, length, 1 << 20):
                yield offset + at, bytes(min(1 << 20, length - at))
image = Large()
image.add(b"/d/pieces", size=1 << 28)
image.add(b"/d/large", size=1 << 31)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
TarWriter(image, lambda data: None, print, True).write(TOP)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 48 << 10, done.stdout

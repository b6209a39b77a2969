# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged and hostile file systems: an error within limits, and nothing beyond the child."""

import json
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_vm.errors import SparsebakError
from backup_vm.files import messages
from backup_vm.files.changes import _flat
from backup_vm.files.child import _SENSELESS
from backup_vm.files.copying import Copier
from backup_vm.files.parser import Entry, FileSystemError, Parser, Stat, _entries
from backup_vm.files.readers import partitions
from backup_vm.files.readers.decompression import decompressed
from backup_vm.files.readers.source import Absent, Malformed, Source, Unsupported
from backup_vm.files.session import Found
from tests.files import trees
from tests.files.kit import ImageFile, files_of, told

ROOT = Path(__file__).parent.parent.parent
EXPECTED = (Malformed, Unsupported, Absent, *_SENSELESS)
STAT = [0o100644, 1, 0, 0, 5, 0, 0, 0, 0, 0]


def read_all(image: Path, most: int = 400) -> None:
    """All that is said of files, as far as it can be had, in this process."""
    file = ImageFile(image)
    source = Source(file.read, 0, file.size)
    try:
        reader = partitions.opened(source, partitions.parts(source)[0])
        nodes = [reader.root]
        for node in nodes:
            try:
                about = reader.stat(node)
                list(reader.attributes(node))
                kind = about.mode >> 12
                if kind == 4 and len(nodes) < most:
                    nodes += [entry.node for entry in reader.names(node)][:most]
                elif kind == 10:
                    reader.link(node)
                elif kind == 8:
                    for extent in list(reader.extents(node))[:50]:
                        if extent.place is None:
                            reader.contents(node, extent.offset, min(extent.length, 1 << 16))
                        else:
                            assert extent.place + extent.length <= file.size
            except EXPECTED:
                continue
    except EXPECTED:
        pass
    finally:
        file.close()


@pytest.fixture(scope="module", params=["ext4", "ext4-inline", "xfs", "btrfs-zstd"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("sound") / "image"
    options = trees.made(image, request.param)
    with trees.mounted(image, *options) as folder:
        trees.fill(folder, 30)
    return image


def test_flipped_bytes_are_damage_and_no_fault(sound: Path, tmp_path: Path) -> None:
    """Only in blocks that say what files there are: all others are contents."""
    file = ImageFile(sound)
    source = Source(file.read, 0, file.size)
    partitions.opened(source, partitions.parts(source)[0])
    file.close()
    image, chance = tmp_path / "image", random.Random(7)
    shutil.copy(sound, image)
    blocks = [block for block in sorted(file.asked) if block * 4096 < file.size]
    with open(image, "r+b", buffering=0) as out:
        blocks += [
            number
            for number in range(0, file.size // 4096, 3)
            if any(os.pread(out.fileno(), 64, number * 4096))
        ][:600]
        for _ in range(25):
            places = [chance.choice(blocks) * 4096 + chance.randrange(4096) for _ in range(30)]
            old = [(at, os.pread(out.fileno(), 1, at)) for at in places]
            for at in places:
                os.pwrite(out.fileno(), chance.randbytes(1), at)
            read_all(image)
            for at, byte in reversed(old):
                os.pwrite(out.fileno(), byte, at)


def test_a_copy_of_a_damaged_file_system_ends(sound: Path, tmp_path: Path) -> None:
    """Through the child, with all that is around it."""
    image, chance = tmp_path / "image", random.Random(3)
    for turn in range(2):
        shutil.copy(sound, image)
        with open(image, "r+b", buffering=0) as out:
            for _ in range(2000):
                at = chance.randrange(1 << 22) + 70_000
                os.pwrite(out.fileno(), chance.randbytes(2), at)
        try:
            with files_of(image) as files:
                copier = Copier(files, lambda text: None, False, lambda size: None)
                copier.copy(files.find(b"/"), tmp_path / f"out{turn}")
        except SparsebakError as error:
            assert "\n" not in str(error)


def test_an_image_that_is_cut_off_is_an_error(sound: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    shutil.copy(sound, image)
    for size in (1 << 21, 100_000, 70_000, 2000, 513, 1, 0):
        os.truncate(image, size)
        with pytest.raises(FileSystemError), files_of(image) as files:
            Copier(files, lambda text: None, False, lambda size: None).copy(
                files.find(b"/"), tmp_path / "out"
            )
            raise FileSystemError("some of it may be whole")  # which is reported file by file
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


TRIES = """
import os, signal, socket, sys
user = int(sys.argv[1])
sys.path[:] = sys.argv[2:]
from backup_vm.files import sandbox
import ctypes
parent = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
sandbox.enter()
tries = {
    "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "write": lambda: os.open("/tmp/written", os.O_WRONLY | os.O_CREAT),
    "listen": lambda: socket.socket(),
    "pipe": os.pipe,
    "dup": lambda: os.dup(0),
    "fork": os.fork,
    "signal": lambda: os.kill(parent, signal.SIGTERM),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "look": lambda: os.stat("/proc/%d/mem" % parent) and libc.ptrace(16, parent, 0, 0) and 1 / 0,
    "memory": lambda: bytearray(2 << 30),
    "root": lambda: os.setuid(0),
    "link": lambda: os.symlink("/", "/tmp/linked"),
}
failed = []
for name, attempt in tries.items():
    try:
        attempt()
    except (OSError, MemoryError, ZeroDivisionError):
        continue
    failed.append(name)
os.write(0, repr(failed).encode())
"""


@pytest.mark.parametrize("user", [0, 65533])
def test_the_child_can_do_nothing_but_compute(user: int) -> None:
    user = user if os.geteuid() == 0 else 0
    ours, its = socket.socketpair()
    folders = [str(ROOT), *filter(os.path.isabs, sys.path)]
    with ours:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", TRIES, str(user), *folders],
            stdin=its.fileno(),
            cwd="/",
        )
        its.close()
        assert done.returncode == 0
        failed = ours.recv(1000).decode()
    assert failed == "[]"


def test_readers_import_nothing_of_the_rest() -> None:
    for path in (ROOT / "backup_vm/files/readers").glob("*.py"):
        for line in path.read_text().splitlines():
            if "import" in line and "backup_vm" in line:
                assert "backup_vm.files.readers." in line, (path, line)


def test_the_parser_is_never_in_the_command_itself() -> None:
    """Importing all that the command uses of files brings no reader with it."""
    code = (
        "import sys, backup_vm.jobs.files, backup_vm.files.copying, backup_vm.files.showing\n"
        "assert not [m for m in sys.modules if 'files.readers' in m or 'files.child' in m]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


class Lying(Parser):
    """A parser whose child says what the test wants."""

    def __init__(self, *frames: bytes) -> None:
        super().__init__()
        self._frames = frames
        self.add(lambda offset, length: bytes(length), 1000)

    def _start(self) -> None:
        ours, its = socket.socketpair()
        self._socket.close()
        self._socket = ours
        self._process = subprocess.Popen(["sleep", "60"])

        def answer() -> None:
            with its, suppress(OSError):  # nobody may listen to the end
                its.recv(1 << 16)
                for frame in self._frames:
                    its.sendall(messages.LENGTH.pack(len(frame)) + frame)

        threading.Thread(target=answer, daemon=True).start()


def rows(*found: Any) -> bytes:
    return messages.ROWS + json.dumps(found).encode()


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "a/b", "a\0b", "x" * 256, "\ud800", "/etc/passwd"]
)
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with Lying(rows([name, 1, STAT]), messages.END) as parser, pytest.raises(FileSystemError):
        parser.names(1, 1)


@pytest.mark.parametrize(
    "frames",
    [
        (messages.ROWS + b"[[" * 100_000, messages.END),
        (messages.ROWS + b"9" * 10_000, messages.END),
        (rows(["a", 1, STAT], ["a", 2, STAT]), messages.END),
        (rows(["a", -1, STAT]), messages.END),
        (rows(["a", 1, [*STAT[:4], -5, *STAT[5:]]]), messages.END),
        (rows(["a", 1, [*STAT[:4], 1e9, *STAT[5:]]]), messages.END),
        (rows(["a", True, STAT]), messages.END),
        (messages.DATA + b"x", messages.END),
        (messages.FETCH + messages.RANGE.pack(1, 990, 20),),
        (messages.FETCH + messages.RANGE.pack(2, 0, 20),),
        (messages.FETCH + messages.RANGE.pack(1, 1 << 63, 1 << 20),),
        (messages.FETCH,),
        (messages.FAILED + b"{}",),
        (),
    ],
)
def test_an_answer_that_cannot_be_is_an_error(frames: tuple[bytes, ...]) -> None:
    with Lying(*frames) as parser, pytest.raises(FileSystemError):
        parser.names(1, 1)


@pytest.mark.parametrize(
    "extents", [[[0, 9, 0]], [[0, 2, 999]], [[0, 2, 0], [1, 2, 5]], [[0, 0, 0]], [[0, 2, -1]]]
)
def test_contents_are_within_the_file_and_the_image(extents: list[Any]) -> None:
    with Lying(rows(*extents), messages.END) as parser, pytest.raises(FileSystemError):
        parser.extents(1, 1, 5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
)


@settings(max_examples=50)
@given(JSON)
def test_no_row_is_anything_but_an_entry_or_an_error(row: Any) -> None:
    try:
        for entry in _entries([row]):
            assert b"/" not in entry.name and entry.node >= 0
    except FileSystemError:
        pass


@settings(max_examples=60)
@given(st.binary(max_size=300), st.integers(0, 4000), st.sampled_from([1, 2, 3]))
def test_decompression_gives_what_was_asked_for_or_an_error(
    data: bytes, size: int, packing: int
) -> None:
    with suppress(Malformed):
        assert len(decompressed(data, packing, size, 4096, False)) == size


PIECES = st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=9)), max_size=6)


@given(PIECES, PIECES)
def test_files_in_pieces_are_compared_as_if_they_were_whole(
    one: list[tuple[int, bytes]], other: list[tuple[int, bytes]]
) -> None:
    def placed(pieces: list[tuple[int, bytes]]) -> tuple[list[tuple[int, bytes]], bytes]:
        found, whole, at = [], bytearray(200), 0
        for gap, data in pieces:
            at += gap
            if at + len(data) <= 200:
                found.append((at, data))
                whole[at : at + len(data)] = data
            at += len(data)
        return found, bytes(whole)

    (left, first), (right, second) = placed(one), placed(other)
    assert _flat(iter(left), iter(right)) == (first == second)


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


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_copy_that_is_cut_off_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    files: Any = Folder([(1, found(b"/d/f", 0o100644))], error)
    for top in (found(b"/d", 0o40755), found(b"/f", 0o100644)):
        with pytest.raises((KeyboardInterrupt, SparsebakError)):
            Copier(files, told_text, False, lambda size: None).copy(top, tmp_path / "out")
        assert not os.listdir(tmp_path)


def test_a_child_that_is_killed_is_one_line(tmp_path: Path) -> None:
    image = tmp_path / "image"
    trees.made(image, "ext4")
    with files_of(image) as files:
        process = files._parser._process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        with pytest.raises(FileSystemError, match="ended with -9"):
            files.find(b"/lost+found")
        with pytest.raises(FileSystemError, match="ended"):
            files.find(b"/lost+found")


def test_entries_are_what_they_seem() -> None:
    assert list(_entries([["a", 1, STAT]])) == [Entry(b"a", 1, Stat(*STAT))]
    assert list(_entries([["a", 1, "damaged"]])) == [Entry(b"a", 1, None, "damaged")]

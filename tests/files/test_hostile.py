# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged and hostile file systems: an error within limits, and nothing beyond the child."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
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
from tests.files import trees
from tests.files.kit import ImageFile, files_of

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
    "name", ["\ud800", "user.\ud800", "user.a\0b", "", "user." + "\u20ac" * 200]
)
def test_an_attribute_has_a_name_that_can_be_one(name: str) -> None:
    with Lying(rows([name, "x"]), messages.END) as parser, pytest.raises(FileSystemError):
        parser.attributes(1, 1)


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

# SPDX-License-Identifier: GPL-2.0-or-later
"""The few requests of SFTP version 3 (draft-ietf-secsh-filexfer-02) that files of an archive need,
many on their way at once.

Nothing that a server sends is believed: lengths are bounded, names are bytes until somebody has
looked at them.

Packets are built and parsed by struct, and not declared as our own structures are: the draft
defines them, nothing here prints or fuzzes them by their fields, and apart from a few numbers
they are strings, and kind and flags say how many of them follow.
"""

import stat
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from backup_vm.archive.storage.objects import Unreachable
from backup_vm.archive.storage.ssh import Channel

INIT, VERSION, OPEN, CLOSE, READ, WRITE = 1, 2, 3, 4, 5, 6
LSTAT, FSTAT, OPENDIR, READDIR, REMOVE, MKDIR = 7, 8, 11, 12, 13, 14
STAT, RENAME = 17, 18
STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105
EXTENDED, EXTENDED_REPLY = 200, 201
OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE = 0, 1, 2, 3, 4
NO_CONNECTION, CONNECTION_LOST, UNSUPPORTED = 6, 7, 8
FOR_READING, FOR_WRITING, EXCLUSIVE = 0x01, 0x02 | 0x08 | 0x10, 0x02 | 0x08 | 0x20
IN_PLACE = 0x02
BLOCK = 1 << 15
"""Bytes that any server takes and gives at once (section 4)."""
_FLYING = 64
"""Requests on their way at once."""
_LISTED = 128
"""Folders that are listed at once: a server has as many of them open."""
_MOST = 1 << 20
"""Bytes of an answer."""


class Refused(Exception):
    """The server answered a request with an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text or f"error {code}")
        self.code = code


class Endless(Unreachable):
    """A listing has more names than are read."""


class Attributes(NamedTuple):
    """What a server says of a file; None is what it leaves out."""

    size: int | None
    mode: int | None
    mtime: int | None

    @property
    def is_folder(self) -> bool | None:
        """Whether it is one; None where the server does not say."""
        return None if self.mode is None else stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool | None:
        """Whether it is a regular file; None where the server does not say."""
        return None if self.mode is None else stat.S_ISREG(self.mode)


class Fields:
    """Takes an answer apart; raises Unreachable where it is shorter than it says."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, form: str = ">I") -> int:
        """The next number."""
        size = struct.calcsize(form)
        if self._at + size > len(self._data):
            raise Unreachable("the server's answer is malformed")
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += size
        return int(value)

    def string(self) -> bytes:
        """The next string."""
        size = self.number()
        if self._at + size > len(self._data):
            raise Unreachable("the server's answer is malformed")
        self._at += size
        return self._data[self._at - size : self._at]

    def attributes(self) -> Attributes:
        """The next attributes."""
        flags = self.number()
        size = self.number(">Q") if flags & 1 else None
        if flags & 2:
            self.number(">Q")
        mode = self.number() if flags & 4 else None
        mtime = None
        if flags & 8:
            self.number()
            mtime = self.number()
        if flags & 0x80000000:
            for _ in range(self.number()):
                self.string()
                self.string()
        return Attributes(size, mode, mtime)

    @property
    def left(self) -> bool:
        """Whether anything follows."""
        return self._at < len(self._data)


def text(*parts: bytes) -> bytes:
    """Strings as they are sent."""
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


class Client:
    """One SFTP session. Raises Refused, and what Channel raises; after anything but Refused it is
    of no use any more.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._number = 0
        self._answers: dict[int, tuple[int, Fields]] = {}
        self.flying: set[int] = set()
        """Requests whose answers somebody waits for."""
        self._unwanted: set[int] = set()
        channel.write(struct.pack(">IBI", 5, INIT, 3))
        kind, fields = self._packet()
        if kind != VERSION or fields.number() < 3:
            raise Unreachable("the server does not speak SFTP version 3")
        self.extensions: set[bytes] = set()
        while fields.left:
            self.extensions.add(fields.string())
            fields.string()

    def _packet(self) -> tuple[int, Fields]:
        size, kind = struct.unpack(">IB", self._channel.read(5))
        if not 1 <= size <= _MOST:
            raise Unreachable("the server's answer is malformed")
        return kind, Fields(self._channel.read(size - 1))

    def send(self, kind: int, body: bytes) -> int:
        """Send a request; returns its number, for ``answer``."""
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        self._channel.write(struct.pack(">IBI", len(body) + 5, kind, number) + body)
        self.flying.add(number)
        return number

    def answer(self, number: int, kind: int = STATUS) -> Fields:
        """The answer to a request, of the kind expected; raise Refused."""
        while number not in self._answers:
            got, fields = self._packet()
            of = fields.number()
            if of in self._unwanted:
                self._unwanted.discard(of)
                continue
            if of not in self.flying:
                raise Unreachable("the server answers a request that was not sent")
            self.flying.discard(of)
            self._answers[of] = got, fields
        got, fields = self._answers.pop(number)
        if got == STATUS:
            code = fields.number()
            if code != OK or kind != STATUS:
                said = fields.string() if fields.left else b""
                raise Refused(code, said.decode(errors="replace")[:200])
        elif got != kind:
            raise Unreachable("the server's answer is malformed")
        return fields

    def ask(self, kind: int, body: bytes, answer: int = STATUS) -> Fields:
        """Send a request and wait for its answer."""
        return self.answer(self.send(kind, body), answer)

    def agreed(self, number: int) -> bool:
        """Whether the server did what a request asked for."""
        try:
            self.answer(number)
        except Refused:
            return False
        return True

    def begin(self, name: bytes, body: bytes) -> int:
        """Send a request of an extension; raise Refused where the server has not got it."""
        if name not in self.extensions:
            raise Refused(UNSUPPORTED, f"no {name.decode()}")
        return self.send(EXTENDED, text(name) + body)

    def extended(self, name: bytes, body: bytes, answer: int = STATUS) -> Fields:
        """Send a request of an extension, and wait for its answer."""
        return self.answer(self.begin(name, body), answer)

    def open(self, path: bytes, flags: int) -> bytes:
        """A handle of a file."""
        body = text(path) + struct.pack(">II", flags, 0)
        return self.ask(OPEN, body, HANDLE).string()

    def close(self, handle: bytes) -> None:
        """Close a handle; raise Refused where what was written cannot be kept."""
        self.ask(CLOSE, text(handle))

    def let_go(self, handle: bytes) -> None:
        """Close a handle that was only read from, without waiting for an answer that changes
        nothing: it would be a third of what a short read takes on a long line.
        """
        number = self.send(CLOSE, text(handle))
        self.flying.discard(number)
        self._unwanted.add(number)

    def read(
        self,
        handle: bytes,
        offset: int,
        length: int,
        take: Callable[[bytes], object],
        cut: int = 0,
    ) -> int:
        """Hand on a range of a file in order; returns its bytes, fewer at the file's end.

        ``cut``: where the file is expected to end, so that this is asked with all else. What was
        asked beyond it in one request would be asked again for what lacks.
        """
        flying: deque[tuple[int, int, int]] = deque()
        asked = done = 0
        ended = False
        while flying or (asked < length and not ended):
            while asked < length and not ended and len(flying) < _FLYING:
                size = min(BLOCK, length - asked)
                if offset + asked < cut < offset + asked + size:
                    size = cut - offset - asked
                flying.append((self._read(handle, offset + asked, size), offset + asked, size))
                asked += size
            number, at, size = flying.popleft()
            try:
                data = self.answer(number, DATA).string()
            except Refused as error:
                if error.code != EOF:
                    raise
                ended = True
                continue
            if len(data) > size or not data:
                raise Unreachable("the server's answer is malformed")
            if ended:
                continue
            take(data)
            done += len(data)
            if len(data) < size:  # a short answer is allowed: the rest comes next
                rest = at + len(data), size - len(data)
                flying.appendleft((self._read(handle, *rest), *rest))
        return done

    def _read(self, handle: bytes, offset: int, size: int) -> int:
        return self.send(READ, text(handle) + struct.pack(">QI", offset, size))

    def write(self, handle: bytes, blocks: Iterable[bytes]) -> None:
        """Write a file from its start."""
        flying: deque[int] = deque()
        offset = 0
        for block in blocks:
            if len(flying) >= _FLYING:
                self.answer(flying.popleft())
            body = text(handle) + struct.pack(">Q", offset) + text(block)
            flying.append(self.send(WRITE, body))
            offset += len(block)
        for number in flying:
            self.answer(number)

    def settle(self) -> None:
        """Take the answers of all that is on its way, and forget them."""
        while self.flying:
            _, fields = self._packet()
            of = fields.number()
            self.flying.discard(of)
            self._unwanted.discard(of)
        self._answers.clear()

    def folders(
        self, paths: list[bytes], most: int
    ) -> Iterator[tuple[int, list[tuple[bytes, Attributes]]]]:
        """What is in each of these folders, by its place in the list, all asked at once; those that
        are none are left out.
        """
        for start in range(0, len(paths), _LISTED):
            opened = [
                (start + at, self.send(OPENDIR, text(path)))
                for at, path in enumerate(paths[start : start + _LISTED])
            ]
            handles: list[tuple[int, bytes]] = []
            for at, number in opened:
                try:
                    handles.append((at, self.answer(number, HANDLE).string()))
                except Refused as error:
                    if error.code == PERMISSION_DENIED:
                        raise
            found: dict[int, list[tuple[bytes, Attributes]]] = {at: [] for at, _ in handles}
            reading = handles
            while reading:
                # Twice at once: the last answer says nothing but that there is no more, and of most
                # folders the first one says all.
                asked = [
                    (at, handle, [self.send(READDIR, text(handle)) for _ in range(2)])
                    for at, handle in reading
                ]
                reading = []
                for at, handle, numbers in asked:
                    answers = [self._entries(number) for number in numbers]
                    found[at] += chain.from_iterable(answers)
                    if all(answers):
                        reading.append((at, handle))
                if sum(map(len, found.values())) > most:
                    raise Endless("the server's listing has no end")
            for _, handle in handles:
                self.let_go(handle)
            yield from found.items()

    def _entries(self, number: int) -> list[tuple[bytes, Attributes]]:
        try:
            fields = self.answer(number, NAME)
        except Refused as error:
            if error.code == EOF:
                return []
            raise
        found = []
        for _ in range(fields.number()):
            name, _ = fields.string(), fields.string()
            found.append((name, fields.attributes()))
        return found

    def end(self) -> None:
        """Close the connection."""
        self._channel.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""A second reader of sparsebak archives, written from docs/format.md alone; it shares no code with
the project.

    python3 reader.py ARCHIVE list
    python3 reader.py ARCHIVE assemble QUBE/VOLUME SESSION OUTPUT

SESSION is a name as ``list`` shows it, its beginning, or ``latest``. The passphrase or recovery key
is asked for, or read from the first line of the file that SPARSEBAK_PASSPHRASE_FILE names; an open
archive then needs --open at the end. Needs Python 3.11, cryptography and zstandard. Every chunk is
authenticated and compared with its id, every image with its root; nothing else is trusted.
"""

import base64
import getpass
import hashlib
import hmac
import os
import struct
import sys
import time
import tomllib
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

ZERO = bytes(32)
CLEAR = struct.Struct("<4sHBB16s16s16sQQQI")
PAGE = 1024
FORMAT = 2
SUITES = {1: b"chunk ids", 2: b"chunk ids 2"}
Place = tuple[Path, int, int]
BROKEN = (OSError, ValueError, InvalidTag, KeyError, TypeError, AttributeError)
BROKEN += (RecursionError, struct.error, EOFError)


class Unreadable(ValueError):
    """The archive, or the key, is not what it should be."""


def derive(key: bytes, info: bytes, salt: bytes | None = None) -> bytes:
    return HKDF(SHA256(), 32, salt, info).derive(key)


def short_open(key: bytes, sealed: bytes, data: bytes) -> bytes:
    return AESGCM(derive(key, b"stream", sealed[:16])).decrypt(sealed[16:28], sealed[28:], data)


def keyed(key: bytes, *parts: bytes, size: int = 32, person: bytes = b"") -> bytes:
    digest = hashlib.blake2b(key=key, digest_size=size, person=person)
    for part in parts:
        digest.update(part)
    return digest.digest()


def chunk_hash(suite: int, key: bytes, chunk: bytes) -> bytes:
    return keyed(key, chunk) if suite == 1 else hmac.digest(key, chunk, "sha256")


class Keys:
    def __init__(self, master: bytes) -> None:
        self.master = master
        self.records = self.sub(b"records")

    def sub(self, name: bytes, domain: bytes = b"") -> bytes:
        return derive(self.master, b"sparsebak/2 " + name + b"\0" + domain)


def recovery_key(text: str) -> bytes:
    """20 bytes from eight groups of five letters."""
    letters = "".join(text.upper().replace("-", " ").split())
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    if len(letters) != 40 or any(letter not in alphabet for letter in letters):
        raise ValueError("not a recovery key")
    groups = [letters[at : at + 5] for at in range(0, 40, 5)]
    for index, group in enumerate(groups):
        weighed = zip((1, 3, 5, 7), map(alphabet.index, group[:4]), strict=True)
        if group[4] != alphabet[(sum(a * b for a, b in weighed) + index) % 32]:
            raise ValueError(f"group {index + 1}, {group}, is mistyped")
    return base64.b32decode("".join(group[:4] for group in groups))


def wrapping_key(slot: bytes, secret: str) -> bytes:
    kind, log_n, r, p = slot[:4]
    if kind == 2:
        return derive(recovery_key(secret), b"sparsebak/2 recovery", slot[4:20])
    if kind != 1 or log_n > 17 or not (1 <= r <= 8 and 1 <= p <= 4) or r * p << log_n > 1 << 21:
        raise ValueError("a slot that nothing has made")
    raw = secret.encode("utf-8", "surrogateescape")
    return Scrypt(slot[4:20], 32, 1 << log_n, r, p).derive(raw)


def master_key(parameters: dict[str, object], secret: str) -> bytes:
    archive = bytes.fromhex(str(parameters["archive"]))
    slots = parameters["slots"]
    secret = secret.removeprefix("\ufeff")
    composed, apart = (unicodedata.normalize(form, secret) for form in ("NFC", "NFD"))
    forms = dict.fromkeys([composed, secret, apart])
    for slot in map(bytes.fromhex, slots[:16] if isinstance(slots, list) else []):
        for form in forms:
            with suppress(ValueError, InvalidTag):
                wrapping = wrapping_key(slot, form)
                return short_open(wrapping, slot[20:], slot[:20] + archive + b"sealed")
    raise Unreadable("this passphrase or recovery key does not open the archive")


class Session:
    def __init__(self, raw: bytes, keys: Keys, archive: bytes) -> None:
        if raw[:8] != b"SBSESS\0\2" or keyed(b"", raw[:-32]) != raw[-32:]:
            raise Unreadable("its checksum is wrong")
        self.inherit, self.count, self.base = struct.unpack_from("<QQ16s", raw, 8)
        clear, sealed = raw[40 : 40 + CLEAR.size], raw[40 + CLEAR.size : 40 + 400]
        magic, form, suite, _, of, *rest = CLEAR.unpack(clear)
        self.volume_id, self.id, self.sequence, self.time, self.size, self.chunk = rest
        self.file = f"{self.sequence:010d}-{self.id.hex()}.session"
        self.suite, text = suite, short_open(keys.records, sealed, clear)
        if (magic, form, of) != (b"SBRC", FORMAT, archive) or suite not in SUITES:
            raise Unreadable("a record of another archive or format")
        qube, volume, _, domain, self.root, _ = struct.unpack("<64s64s64s16s32s32s", text)
        names = (SUITES[suite], b"sealing", b"root")  # of its deduplication domain
        self.id_key, self.sealing, self.root_key = (keys.sub(name, domain) for name in names)
        self.volume = b"/".join(name.rstrip(b"\0") for name in (qube, volume)).decode("ascii")
        self.name = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self.time))
        numbers = struct.unpack_from(f"<{self.count}Q", raw, 440)
        ids = raw[440 + 8 * self.count :]
        self.entries = {number: ids[32 * at : 32 * at + 32] for at, number in enumerate(numbers)}


class Archive:
    def __init__(self, folder: Path, secret: str | None) -> None:
        self.folder, self.parameters = folder, parameters(folder)
        if self.parameters["format"] != FORMAT:
            raise Unreadable(f"an archive of format {self.parameters['format']}, not {FORMAT}")
        if self.parameters["suite"] not in SUITES:
            raise Unreadable("a suite that this reader does not know")
        self.id = bytes.fromhex(self.parameters["archive"])
        key = self.parameters.get("key")
        self.keys = Keys(bytes.fromhex(key) if key else master_key(self.parameters, secret or ""))
        self.unread: list[Path] = []

    def volumes(self) -> dict[str, list[Session]]:
        found: dict[bytes, dict[bytes, Session]] = {}
        for path in sorted(self.folder.glob("volumes/*/*.session")):
            try:
                session = Session(session_file(path), self.keys, self.id)
                if path.name != session.file and len(path.name) == len(session.file):
                    raise Unreadable(f"it holds {session.file}")
            except (OSError, InvalidTag, ValueError, struct.error) as error:
                print(f"reader: {path}: {error or type(error).__name__}", file=sys.stderr)
                self.unread.append(path)
                continue
            known = found.setdefault(session.volume_id, {})
            if path.name == session.file or session.id not in known:  # copies have other names
                known[session.id] = session
        named: dict[str, list[Session]] = {}
        for known in sorted(found.values(), key=lambda known: -max(s.time for s in known.values())):
            series = sorted(known.values(), key=lambda one: one.sequence)
            times = [one.time for one in series]
            for one in series:  # those of one second by their ids, too
                one.name += f"-{one.id[:4].hex()}" if times.count(one.time) > 1 else ""
            name = series[-1].volume  # as it was called last
            while name in named:  # of a qube that was made again under its name
                name = name.replace("/", ".old/")
            named[name] = series
        return dict(sorted(named.items()))

    def select(self, name: str, wanted: str) -> tuple[list[Session], Session]:
        """A volume's sessions, and the one wanted: the latest only if no newer one is damaged."""
        series = self.volumes().get(name, [])
        fits = [one for one in series if one.name.startswith(wanted)]
        if wanted == "latest" and series:
            (last,) = fits = series[-1:]
            unread = [one.name for one in self.unread if one.parent.name == last.volume_id.hex()]
            if any(len(one) == len(last.file) and one[:10] >= last.file[:10] for one in unread):
                raise Unreadable(f"the newest session is damaged; the one before it: {last.name}")
        if len(fits) != 1:
            raise Unreadable(f"{name} has {len(fits) or 'no'} sessions {wanted}; see: list")
        return series, fits[0]

    def places(self, wanted: set[bytes]) -> dict[bytes, list[Place]]:
        """Pack, offset and length of each chunk wanted, from the packs' indexes."""
        found: dict[bytes, list[Place]] = {}
        for path in regular(self.folder, "packs/*/*.pack"):
            try:
                for offset, length, chunk_id in index(path):
                    if chunk_id in wanted:
                        found.setdefault(chunk_id, []).append((path, offset, length))
            except (OSError, Unreadable, struct.error) as error:
                print(f"reader: {path}: its index cannot be read: {error}", file=sys.stderr)
        return found

    def chain(self, series: list[Session], session: Session) -> list[Session]:
        """The session and all that it builds on, the one that builds on nothing first."""
        found = [session]
        while found[0].base != bytes(16):
            bases = [one for one in series if one.id == found[0].base]
            if not bases or bases[0].sequence >= found[0].sequence:
                raise Unreadable(f"{found[0].name} builds on a session that is missing")
            found.insert(0, bases[0])
        return found

    def assemble(self, series: list[Session], session: Session, output: Path) -> None:
        image: dict[int, bytes] = {}
        for older in self.chain(series, session):
            image = {at: one for at, one in image.items() if at < older.inherit} | older.entries
        chunks = -(-session.size // session.chunk)
        self.check_root(session, image, chunks)
        wanted = {at: one for at, one in image.items() if one != ZERO and at < chunks}
        places = self.places(set(wanted.values()))
        if output.exists():
            raise Unreadable(f"{output} exists")
        part = output.with_name(f"{output.name}.part")  # what ends half way has not the name
        with open(part, "wb") as file:
            file.truncate(session.size)
            for number, chunk_id in sorted(wanted.items()):
                chunk = self.chunk(chunk_id, places.get(chunk_id, []), session)
                file.seek(number * session.chunk)
                file.write(chunk[: session.size - number * session.chunk])
        part.rename(output)

    def check_root(self, session: Session, image: dict[int, bytes], chunks: int) -> None:
        pages = []
        for first in range(0, chunks, PAGE):
            numbers = range(first, min(first + PAGE, chunks))
            ids = b"".join(image.get(one, ZERO) for one in numbers).ljust(32 * PAGE, b"\0")
            pages.append(keyed(session.root_key, ids, person=b"sparsebak page"))
        sizes = struct.pack("<QI", session.size, session.chunk)
        if keyed(session.root_key, sizes, *pages, person=b"sparsebak root") != session.root:
            raise Unreadable(f"{session.volume} {session.name}: its chunks are not its record's")

    def chunk(self, chunk_id: bytes, places: list[Place], session: Session) -> bytes:
        """The chunk from the first place where it proves to be what its id says."""
        for path, offset, length in places:
            try:
                with open(path, "rb") as file:
                    file.seek(offset)
                    sealed = file.read(length)
                key = AESGCM(derive(session.sealing, b"stream", sealed[1:17]))
                data = key.decrypt(sealed[17:29], sealed[29:], sealed[:1] + chunk_id)
            except (InvalidTag, ValueError, OSError):
                continue
            if sealed[0] == 2:  # padded: the frame's length, the frame, zeros
                data = data[4 : 4 + struct.unpack_from("<I", data)[0]]
            if sealed[0] in (1, 2):
                if zstandard.frame_content_size(data) != session.chunk:
                    continue
                data = zstandard.ZstdDecompressor().decompress(data)
            right = chunk_hash(session.suite, session.id_key, data) == chunk_id
            if len(data) == session.chunk and right:
                return data
        raise Unreadable(f"chunk {chunk_id.hex()} is lost or damaged")


def regular(folder: Path, pattern: str) -> list[Path]:
    """Regular files, and no links: a FIFO would block, a link leads elsewhere."""
    return [path for path in sorted(folder.glob(pattern)) if S_ISREG(path.lstat().st_mode)]


def parameters(folder: Path) -> dict[str, Any]:
    """What archive.toml says: a regular file, and none that never ends."""
    path = folder / "archive.toml"
    if not regular(folder, path.name):
        raise Unreadable(f"{path} is missing, or no regular file")
    if path.stat().st_size > 1 << 16:
        raise Unreadable(f"{path} is too large to be one")
    return tomllib.loads(path.read_text())


def session_file(path: Path) -> bytes:
    """A session file, if its length is its head's, with no more chunks than its volume has."""
    if not S_ISREG(path.lstat().st_mode):
        raise Unreadable("it is no regular file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(440)
        if len(head) < 440 or size != 440 + 40 * struct.unpack_from("<Q", head, 16)[0] + 32:
            raise Unreadable("it has another length than its head says")
        *_, volume, chunk = CLEAR.unpack_from(head, 40)
        if not chunk or (size - 472) // 40 > -(-volume // chunk):
            raise Unreadable("it has an impossible number of chunks")
        return head + file.read(size - 440)


def index(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Offset, length and id of each chunk in a pack."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(-36, os.SEEK_END)
        start, count, _, magic = struct.unpack("<QI16s8s", file.read(36))
        if magic != b"SBINDX\0\2" or start + 60 * count + 36 != size:
            raise Unreadable("it is damaged")
        file.seek(start)
        for _ in range(count):
            offset, length, chunk_id, _ = struct.unpack("<QI32s16s", file.read(60))
            if not 0 < length <= 4 << 20 | 1 << 10:
                raise Unreadable("it is damaged")
            yield offset, length, chunk_id


def secret() -> str:
    if path := os.environ.get("SPARSEBAK_PASSPHRASE_FILE"):
        line = Path(path).read_bytes().split(b"\n")[0].rstrip(b"\r")
        return line.decode("utf-8", "surrogateescape")
    return getpass.getpass("Passphrase or recovery key: ")


def listing(archive: Archive) -> Iterator[str]:
    for name, series in archive.volumes().items():
        for session in series:
            yield f"{name:40} {session.name}  {session.size:>16,} bytes"


def main(arguments: list[str]) -> int:
    told_open = arguments[-1:] == ["--open"]
    arguments = arguments[:-1] if told_open else arguments
    if (len(arguments), arguments[1:2]) not in ((2, ["list"]), (5, ["assemble"])):
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    try:
        sealed = "key" not in parameters(folder)
        if sealed and told_open:
            raise Unreadable("the archive is sealed; leave --open out")
        if not sealed and not told_open and "SPARSEBAK_PASSPHRASE_FILE" in os.environ:
            text = "the archive says that it is open and needs no passphrase: if you made it so,"
            raise Unreadable(f"{text} add --open; if not, it is not yours")
        archive = Archive(folder, secret() if sealed else None)
        if arguments[1] == "list":
            print("\n".join(listing(archive)))
            return 0
        _, _, name, wanted, output = arguments
        archive.assemble(*archive.select(name, wanted), Path(output))
    except BROKEN as error:
        print(f"reader: {error or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys, chunk ids and sealed chunks. Byte by byte in docs/format.md; every primitive is a
library's.

``cryptography`` and ``zstandard`` are imported where they are used, for a call to dom0 that needs
neither is short.
"""

import hashlib
import hmac
import os
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from wire import DEDUP_DOMAIN_SIZE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SUITE_BLAKE2B, SUITE_SHA256 = 1, 2
SUITES = {SUITE_BLAKE2B: "blake2b", SUITE_SHA256: "hmac-sha256"}
"""What chunk ids are made with, by the number of the suite; an archive has one for life. All else
is the same in both: AES-256-GCM, HKDF-SHA256, zstd, BLAKE2b for roots and records. A reader refuses
any other number.

Two, because neither is the faster one everywhere: BLAKE2b does 944 MB/s on any processor,
HMAC-SHA256 1,755 on one with SHA instructions and half of BLAKE2b's rate on one without. Both
together, so that breaking one would not do, would cost a third of the rate, and an id is no seal.
"""

_ID_LABELS = {SUITE_BLAKE2B: "chunk ids", SUITE_SHA256: "chunk ids 2"}

KEY_SIZE = ID_SIZE = 32
ZERO_ID = bytes(ID_SIZE)
"""Id of a chunk of zeros only, which has no data."""

SALT_SIZE, NONCE_SIZE, TAG_SIZE = 16, 12, 16
OVERHEAD = 1 + SALT_SIZE + NONCE_SIZE + TAG_SIZE
"""Bytes that sealing adds to the compressed chunk."""

METHOD_RAW, METHOD_ZSTD, METHOD_PADDED = range(3)
_LENGTH_SIZE = 4
"""Bytes before a padded chunk's zstd frame that tell the frame's length."""
_THREAD = threading.local()


class NotAuthentic(Exception):
    """Something sealed does not open, or is not what it claims to be."""


def derive(key: bytes, info: bytes, salt: bytes | None = None) -> bytes:
    """HKDF-SHA256 (RFC 5869) to 32 bytes."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=salt, info=info).derive(key)


class DomainKeys(NamedTuple):
    """All that it takes to seal or open the images of one deduplication domain: three keys of 32
    bytes.

    They are derived for the domain, each on its own, so that whoever is given them can open nothing
    of another domain, and no record: what opens chunks or computes roots takes these and never the
    archive's ``Keys``. ``suite`` says what ``ids`` is for: one key, one algorithm.
    """

    suite: int
    ids: bytes
    sealing: bytes
    root: bytes

    def __repr__(self) -> str:  # keys belong into no log
        return f"DomainKeys(suite={self.suite})"


class Keys:
    """The sub-keys of an archive, each derived from the 32-byte master key when asked for."""

    def __init__(self, master: bytes) -> None:
        if len(master) != KEY_SIZE:
            raise ValueError("a master key has 32 bytes")
        self._master = master
        self._domains: dict[tuple[bytes, int], DomainKeys] = {}

    def sub_key(self, label: str, dedup_domain: bytes = b"") -> bytes:
        """32-byte sub-key for a purpose: "records" and "volume ids" of the archive, or one of
        ``of_domain``.
        """
        # The number belongs to the label: it says in which format this way to derive keys came up,
        # and stays what it is where a later format derives them alike.
        info = b"sparsebak/2 " + label.encode("ascii") + b"\x00" + dedup_domain
        return derive(self._master, info)

    def of_domain(self, dedup_domain: bytes, suite: int) -> DomainKeys:
        """The keys of a deduplication domain (16 bytes); derived once."""
        if len(dedup_domain) != DEDUP_DOMAIN_SIZE:
            # the domain ends the text that a key is derived from: of another length it could be
            # another's
            raise ValueError("a deduplication domain has 16 bytes")
        found = self._domains.get((dedup_domain, suite))
        if found is None:
            found = self._domains[dedup_domain, suite] = DomainKeys(
                suite=suite,
                ids=self.sub_key(_ID_LABELS[suite], dedup_domain),
                sealing=self.sub_key("sealing", dedup_domain),
                root=self.sub_key("root", dedup_domain),
            )
        return found

    def volume_id(self, identity: str, volume: str) -> bytes:
        """16 bytes that stand for the volume wherever names must not; by its qube's identity."""
        name = f"{identity}/{volume}".encode("ascii")
        return hashlib.blake2b(name, digest_size=16, key=self.sub_key("volume ids")).digest()


class ChunkIds:
    """Chunk ids of one deduplication domain.

    The same chunk has another id in another domain. So the backup VM, which stores each id once and
    knows of no domains, never lets two of them share a sealed chunk, which only one of them could
    open.
    """

    def __init__(self, keys: DomainKeys, chunk_size: int) -> None:
        # Keyed: of a plain hash anybody who has the archive could tell which known files it holds.
        self._key = keys.ids
        self._hash = self._sha256 if keys.suite == SUITE_SHA256 else self._blake2b
        self._zeros = self._hash(bytes(chunk_size))

    def _blake2b(self, chunk: bytes | memoryview) -> bytes:
        return hashlib.blake2b(chunk, digest_size=ID_SIZE, key=self._key).digest()

    def _sha256(self, chunk: bytes | memoryview) -> bytes:
        return hmac.digest(self._key, chunk, "sha256")

    def of(self, chunk: bytes | memoryview) -> bytes:
        """Id of a chunk of exactly the archive's chunk size (the last one of a volume padded with
        zeros).
        """
        chunk_id = self._hash(chunk)
        return ZERO_ID if chunk_id == self._zeros else chunk_id


class Sealer:
    """Seals chunks of one domain under one fresh random salt; made again for every Extract call.
    Safe to share between threads.

    ``padding``: compressed chunks are filled up to a multiple of so many bytes, so that their sizes
    tell less; 0 for none.
    """

    def __init__(self, keys: DomainKeys, level: int, padding: int = 0) -> None:
        # The salt selects the key, and the chunk number is the nonce: a nonce that comes twice
        # under one key would give away what GCM authenticates with. A counter kept on disk would
        # come twice where dom0 is cloned or put back from a backup; random salts do not.
        self._salt = os.urandom(SALT_SIZE)
        self._aead = _aead(derive(keys.sealing, b"stream", self._salt))
        self._level, self._padding = level, padding

    def seal(self, counter: int, chunk_id: bytes, chunk: bytes | memoryview) -> bytes:
        """Compress and seal a chunk. ``counter`` must differ for every chunk sealed by this
        object.
        """
        import zstandard

        compressor = getattr(_THREAD, "compressor", None)
        if compressor is None or compressor[0] != self._level:
            compressor = _THREAD.compressor = (
                self._level,
                zstandard.ZstdCompressor(level=self._level),
            )
        method, data = METHOD_ZSTD, compressor[1].compress(chunk)
        if self._padding:
            method, data = METHOD_PADDED, self._padded(data)
        # What does not compress is not looked for: zstd finds out in 20 microseconds a chunk, where
        # compressing samples of it first takes 15 and is wrong now and then.
        if len(data) >= len(chunk):
            method, data = METHOD_RAW, bytes(chunk)  # all that older releases of cryptography take
        nonce = counter.to_bytes(NONCE_SIZE, "little")
        # The id is authenticated with the chunk, so that none can be passed off as another.
        head = bytes((method,))
        return head + self._salt + nonce + self._aead.encrypt(nonce, data, head + chunk_id)

    def _padded(self, frame: bytes) -> bytes:
        length = -(-(_LENGTH_SIZE + len(frame)) // self._padding) * self._padding
        return (len(frame).to_bytes(_LENGTH_SIZE, "little") + frame).ljust(length, b"\0")


class Opener:
    """Opens sealed chunks of one deduplication domain. Safe to share between threads."""

    _SALTS = 256

    def __init__(self, keys: DomainKeys) -> None:
        self._key = keys.sealing
        self._streams: dict[bytes, AESGCM] = {}

    def open(
        self, chunk_id: bytes, untrusted_sealed: bytes | memoryview, ids: ChunkIds, chunk_size: int
    ) -> bytes:
        """Authenticate, decompress to at most ``chunk_size`` bytes, check the id. Raise
        NotAuthentic.
        """
        if not OVERHEAD <= len(untrusted_sealed) <= chunk_size + OVERHEAD:
            raise NotAuthentic("sealed chunk has an impossible length")
        salt = bytes(untrusted_sealed[1 : 1 + SALT_SIZE])
        nonce = bytes(untrusted_sealed[1 + SALT_SIZE : 1 + SALT_SIZE + NONCE_SIZE])
        data = untrusted_sealed[1 + SALT_SIZE + NONCE_SIZE :]
        plain = _decrypt(self._stream(salt), nonce, data, bytes(untrusted_sealed[:1]) + chunk_id)
        chunk = self._expand(untrusted_sealed[0], plain, chunk_size)
        # The tag proves that dom0 sealed this under that id. That the id is the contents' own,
        # which a fault of memory in between would undo, is seen only so.
        if ids.of(chunk) != chunk_id:
            raise NotAuthentic("chunk does not have the id it was sealed under")
        return chunk

    def _stream(self, salt: bytes) -> "AESGCM":
        aead = self._streams.get(salt)
        if aead is None:
            # One salt a session, as a rule; a hostile archive may have one a chunk.
            if len(self._streams) >= self._SALTS:
                self._streams.clear()
            aead = self._streams[salt] = _aead(derive(self._key, b"stream", salt))
        return aead

    @staticmethod
    def _expand(method: int, plain: bytes, chunk_size: int) -> bytes:
        if method == METHOD_RAW:
            chunk = plain
        elif method == METHOD_ZSTD:
            chunk = _decompress(plain, chunk_size)
        elif method == METHOD_PADDED:
            length = int.from_bytes(plain[:_LENGTH_SIZE], "little")
            if length > len(plain) - _LENGTH_SIZE:
                raise NotAuthentic("padded chunk claims to be longer than it is")
            chunk = _decompress(plain[_LENGTH_SIZE : _LENGTH_SIZE + length], chunk_size)
        else:
            raise NotAuthentic(f"unknown compression method {method}")
        if len(chunk) != chunk_size:
            raise NotAuthentic("chunk has another length than the archive's chunks")
        return chunk


def _decompress(frame: bytes, chunk_size: int) -> bytes:
    import zstandard

    decompressor = getattr(_THREAD, "decompressor", None)
    if decompressor is None:
        decompressor = _THREAD.decompressor = zstandard.ZstdDecompressor()
    try:
        # The library allocates what the frame's own header claims, so the claim is checked first.
        if zstandard.get_frame_parameters(frame).content_size != chunk_size:
            raise NotAuthentic("compressed chunk claims another length than the archive's chunks")
        return bytes(decompressor.decompress(frame, max_output_size=chunk_size))
    except zstandard.ZstdError as error:
        raise NotAuthentic(f"chunk does not decompress: {error}") from None


def _aead(key: bytes) -> "AESGCM":
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _decrypt(aead: Any, nonce: bytes, data: bytes | memoryview, associated: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        try:
            return bytes(aead.decrypt(nonce, data, associated))
        except TypeError:  # older releases take nothing but bytes
            return bytes(aead.decrypt(nonce, bytes(data), associated))
    except InvalidTag:
        raise NotAuthentic("does not authenticate under the archive's key") from None


def seal_bytes(key: bytes, plain: bytes, associated: bytes) -> bytes:
    """Seal a short text: salt, nonce, AES-256-GCM, under a key derived from ``key`` and the random
    salt.
    """
    salt, nonce = os.urandom(SALT_SIZE), bytes(NONCE_SIZE)
    return (
        salt + nonce + bytes(_aead(derive(key, b"stream", salt)).encrypt(nonce, plain, associated))
    )


def open_bytes(key: bytes, untrusted_sealed: bytes, associated: bytes) -> bytes:
    """Undo seal_bytes, or raise NotAuthentic."""
    salt, nonce = untrusted_sealed[:SALT_SIZE], untrusted_sealed[SALT_SIZE : SALT_SIZE + NONCE_SIZE]
    return _decrypt(
        _aead(derive(key, b"stream", salt)),
        nonce,
        untrusted_sealed[SALT_SIZE + NONCE_SIZE :],
        associated,
    )

"""What the files of an archive and of dom0's state are made of, field by field, and every way to
get one of them wrong.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from backup_vm.archive.format import (
    ENTRY_SIZE,
    FOOTER_SIZE,
    INDEX_ENTRY_SIZE,
    PACK_HEAD_SIZE,
    SESSION_HEAD_SIZE,
)
from wire.messages import Offer

Seal = Callable[[bytes], bytes]
"""Makes all checksums of a file right again, as whoever writes a disk can."""


@dataclass(frozen=True)
class Field:
    """``number``: little-endian and unsigned; otherwise bytes that mean nothing by themselves."""

    name: str
    at: int
    size: int
    number: bool = False


@dataclass(frozen=True)
class Change:
    """A file made otherwise. ``forged``: its checksums are right."""

    name: str
    raw: bytes
    forged: bool = False


RECORD = (
    ("record magic", 4, False),
    ("format", 2, True),
    ("suite", 1, True),
    ("reserved", 1, True),
    ("archive id", 16, False),
    ("volume id", 16, False),
    ("session id", 16, False),
    ("sequence", 8, True),
    ("time", 8, True),
    ("size", 8, True),
    ("chunk size", 4, True),
    ("salt", 16, False),
    ("nonce", 12, False),
    ("sealed text", 208, False),
    ("tag", 16, False),
)
OFFER = (
    ("volume id", 16, False),
    ("session id", 16, False),
    ("previous", 16, False),
    ("sequence", 8, True),
    ("time", 8, True),
    ("size", 8, True),
    ("chunk size", 4, True),
    ("changed", 8, True),
    ("flags", 2, True),
)


def laid_out(parts: Iterable[tuple[str, int, bool]], at: int) -> list[Field]:
    """Fields one after another."""
    found = []
    for name, size, number in parts:
        found.append(Field(name, at, size, number))
        at += size
    return found


def session_fields(raw: bytes) -> list[Field]:
    count = int.from_bytes(raw[16:24], "little")
    head = (("magic", 8, False), ("inherit", 8, True), ("count", 8, True), ("base", 16, False))
    fields = laid_out((*head, *RECORD), 0)
    numbers, ids = SESSION_HEAD_SIZE, SESSION_HEAD_SIZE + 8 * count
    if count:
        fields += [
            Field("first chunk number", numbers, 8, True),
            Field("last chunk number", ids - 8, 8, True),
            Field("first chunk id", ids, 32),
            Field("last chunk id", ids + 32 * (count - 1), 32),
        ]
    return [*fields, Field("digest", len(raw) - 32, 32)]


def seal_session(raw: bytes) -> bytes:
    return raw[:-32] + hashlib.blake2b(raw[:-32], digest_size=32).digest()


_ENTRY = (("length", 4, True), ("id", 32, False), ("checksum", 16, False))


def pack_fields(raw: bytes) -> list[Field]:
    index, count = struct.unpack_from("<QI", raw, len(raw) - FOOTER_SIZE)
    fields = laid_out((("magic", 8, False), ("archive id", 16, False)), 0)
    for name, at in (("first", index), ("last", index + (count - 1) * INDEX_ENTRY_SIZE)):
        offset, length = struct.unpack_from("<QI", raw, at)
        fields += laid_out([(f"{name} head {n}", s, k) for n, s, k in _ENTRY], offset - ENTRY_SIZE)
        fields += laid_out(
            (
                (f"{name} method", 1, True),
                (f"{name} salt", 16, False),
                (f"{name} nonce", 12, False),
            ),
            offset,
        )
        fields.append(Field(f"{name} tag", offset + length - 16, 16))
        fields += laid_out(
            [
                (f"{name} index offset", 8, True),
                *((f"{name} index {n}", s, k) for n, s, k in _ENTRY),
            ],
            at,
        )
    foot = (
        ("index at", 8, True),
        ("count", 4, True),
        ("index checksum", 16, False),
        ("end", 8, False),
    )
    return fields + laid_out(foot, len(raw) - FOOTER_SIZE)


def seal_pack(raw: bytes) -> bytes:
    """The index's checksum, and those of chunks that lie where the index says, in both places."""
    whole = bytearray(raw)
    index, count = struct.unpack_from("<QI", raw, len(raw) - FOOTER_SIZE)
    end = len(raw) - FOOTER_SIZE
    if index <= end - count * INDEX_ENTRY_SIZE:
        for at in range(index, index + count * INDEX_ENTRY_SIZE, INDEX_ENTRY_SIZE):
            offset, length = struct.unpack_from("<QI", raw, at)
            if PACK_HEAD_SIZE + ENTRY_SIZE <= offset <= index - length:
                found = xxhash.xxh3_128_digest(raw[offset : offset + length])
                whole[at + INDEX_ENTRY_SIZE - 16 : at + INDEX_ENTRY_SIZE] = found
                whole[offset - 16 : offset] = found
        whole[end + 12 : end + 28] = xxhash.xxh3_128_digest(
            bytes(whole[index : index + count * INDEX_ENTRY_SIZE])
        )
    return bytes(whole)


def partial_fields(raw: bytes) -> list[Field]:
    at = Offer.length()
    fields = laid_out(OFFER, 0)
    group = (("upto", 8, True), ("group count", 8, True), ("group digest", 16, False))
    fields += laid_out(group, at)
    count = int.from_bytes(raw[at + 8 : at + 16], "little")
    fields += [
        Field("first number", at + 32, 8, True),
        Field("first id", at + 32 + 8 * count, 32),
    ]
    return fields


def seal_partial(raw: bytes) -> bytes:
    whole, at = bytearray(raw), Offer.length()
    while at + 32 <= len(raw):
        count = int.from_bytes(raw[at + 8 : at + 16], "little")
        end = at + 32 + count * 40
        if end > len(raw):
            break
        covered = raw[at : at + 8] + raw[at + 32 : end]
        whole[at + 16 : at + 32] = hashlib.blake2b(covered, digest_size=16).digest()
        at = end
    return bytes(whole)


def exported_fields(raw: bytes) -> list[Field]:
    length = int.from_bytes(raw[24:28], "little")
    fields = laid_out(
        (("magic", 8, False), ("archive id", 16, False), ("length of parameters", 4, True)), 0
    )
    fields += laid_out(RECORD, 28 + length)
    ids = 28 + length + 336
    size, chunk = struct.unpack_from("<QI", raw, 28 + length + 72)
    chunks = ids + 32 * -(-size // chunk)
    return [
        *fields,
        Field("first id", ids, 32),
        Field("first length", chunks, 4, True),
        Field("first method", chunks + 4, 1, True),
        Field("digest", len(raw) - 32, 32),
    ]


def seal_exported(raw: bytes) -> bytes:
    return raw[:-32] + hashlib.blake2b(raw[:-32], digest_size=32).digest()


def in_fields(raw: bytes, fields: Iterable[Field], seal: Seal | None) -> Iterator[Change]:
    """Every field at its bounds; with ``seal`` once as it is, and once with the checksums made
    right.
    """
    for field in fields:
        old = raw[field.at : field.at + field.size]
        for name, new in _values(old, field):
            changed = raw[: field.at] + new + raw[field.at + field.size :]
            yield Change(f"{field.name} {name}", changed)
            if seal is not None and (sealed := seal(changed)) not in (changed, raw):
                yield Change(f"{field.name} {name}, forged", sealed, True)


def _values(old: bytes, field: Field) -> Iterator[tuple[str, bytes]]:
    bits, found = 8 * field.size, {old}
    if field.number:
        was = int.from_bytes(old, "little")
        numbers = {
            "0": 0,
            "1": 1,
            "one less": was - 1,
            "one more": was + 1,
            "twice": 2 * was,
            "2^31": 1 << 31,
            "2^40": 1 << 40,
            "largest signed": (1 << bits - 1) - 1,
            "largest": (1 << bits) - 1,
        }
        values = [
            (name, (n % (1 << bits)).to_bytes(field.size, "little")) for name, n in numbers.items()
        ]
    else:
        values = [
            ("zero", bytes(field.size)),
            ("all ones", b"\xff" * field.size),
            ("first bit", bytes([old[0] ^ 1]) + old[1:]),
            ("last bit", old[:-1] + bytes([old[-1] ^ 0x80])),
        ]
    for name, value in values:
        if value not in found:
            found.add(value)
            yield name, value


def in_length(raw: bytes, fields: Iterable[Field], seal: Seal | None) -> Iterator[Change]:
    """Cut at every field and within it, too long, empty, twice, with pages of zeros."""
    cuts = {0, 1, len(raw) - 1, len(raw) // 2}
    for field in fields:
        cuts |= {field.at, field.at + field.size - 1}
    for at in sorted(cut for cut in cuts if 0 <= cut < len(raw)):
        yield Change(f"cut at {at}", raw[:at])
    for name, changed in (
        ("a byte more", raw + b"\0"),
        ("a page more", raw + bytes(4096)),
        ("twice", raw + raw),
        ("zeros at the beginning", bytes(min(512, len(raw))) + raw[512:]),
        (
            "zeros in the middle",
            raw[: len(raw) // 3] + bytes(len(raw) // 3) + raw[len(raw) // 3 * 2 :],
        ),
        ("zeros at the end", raw[: -min(512, len(raw))] + bytes(min(512, len(raw)))),
        ("all zeros", bytes(len(raw))),
        ("no zeros", b"\xff" * len(raw)),
    ):
        yield Change(name, changed)
        if seal is not None and len(changed) > 600:
            yield Change(f"{name}, forged", seal(changed), True)


ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 1 << 31, 1 << 63, 1 << 64, 10**30, 1.5, float("inf"), "", "x",
    "\0", "../../x", "é" * 300, "0" * 32, "f" * 64, [], [[]], {}, {"a": {}}, [1, 2], "x" * 100_000,
)  # fmt: skip


def in_tree(tree: Any, odd: tuple[Any, ...] = ODD) -> Iterator[tuple[str, Any]]:
    """A tree of lists and dictionaries with each of its nodes replaced, missing, or beside one
    more.
    """
    for path in _paths(tree):
        name = "/".join(map(str, path)) or "all of it"
        for value in odd:
            yield f"{name} = {repr(value)[:40]}", _with(tree, path, value)
        if path:
            yield f"{name} missing", _without(tree, path)
    if isinstance(tree, dict):
        yield "one more", tree | {"another": 1}


def _paths(tree: Any) -> Iterator[tuple[Any, ...]]:
    yield ()
    if isinstance(tree, dict):
        for key, below in tree.items():
            yield from ((key, *path) for path in _paths(below))
    elif isinstance(tree, list):
        for index, below in enumerate(tree[:2]):
            yield from ((index, *path) for path in _paths(below))


def _with(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = _with(tree[path[0]], path[1:], value)
    return copy


def _without(tree: Any, path: tuple[Any, ...]) -> Any:
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = _without(tree[path[0]], path[1:])
    return copy


def notes_changes(raw: bytes) -> Iterator[Change]:
    body = json.loads(raw.split(b"\n")[0])
    for name, tree in in_tree(body):
        yield Change(f"{name}, forged", seal_notes(json.dumps(tree).encode()), True)
    for name, text in (
        ("deep", b"[" * 100_000),
        ("no JSON", b"{"),
        ("a huge number", b'{"format": ' + b"1" * 5000 + b"}"),
        ("NaN", b'{"format": NaN}'),
        ("not UTF-8", b'"\xff\xfe"'),
    ):
        yield Change(f"{name}, forged", seal_notes(text), True)
    yield from in_length(raw, [Field("checksum", len(raw) - 33, 33)], None)


def seal_notes(body: bytes) -> bytes:
    return body + b"\n" + hashlib.blake2b(body, digest_size=16).hexdigest().encode() + b"\n"


def toml_changes(raw: bytes) -> Iterator[Change]:
    """archive.toml with each of its values made otherwise."""
    body = raw[: raw.index(b"checksum = ")].decode()
    lines = body.splitlines()
    for number, line in enumerate(lines):
        key, equals, value = line.partition(" = ")
        if not equals:
            continue
        odd = ["0", "1", "-1", "2", "true", '""', '"x"', "[]", "{}", "1.5", "nan", str(1 << 63)]
        odd += [f"{value}\n{line}", "1979-05-27", '"' + "0" * 32 + '"', '"\\u0000"', f"[{value}]"]
        if key == "slots":
            one = value.strip("[]").split(", ")[0]
            odd += [
                f"[{one}]",
                "[" + ", ".join([one] * 1000) + "]",
                '["00"]',
                f'["{"01ff0808" + "0" * 184}"]',
            ]
            odd += [f'["{"01" + n + one[5:-1]}"]' for n in ("00", "14", "1f", "ff")]
        if key == "chunk_size":
            odd += ["65535", "131072", "4194304", "8388608"]
        for new in odd:
            if new != value:
                text = "\n".join([*lines[:number], f"{key} = {new}", *lines[number + 1 :]]) + "\n"
                yield Change(f"{key} = {new[:30]!r}, forged", seal_toml(text.encode()), True)
        yield Change(f"{key} = x", raw.replace(line.encode(), f"{key} = 0".encode()))
        text = "\n".join([*lines[:number], *lines[number + 1 :]]) + "\n"
        yield Change(f"{key} missing, forged", seal_toml(text.encode()), True)
    for name, text in (
        ("no TOML", "= ="),
        ("deep", "a = " + "[" * 50_000),
        ("deep tables", "a." * 50_000 + "b = 1\n"),
        ("a huge number", "format = " + "1" * 10_000 + "\n"),
    ):
        yield Change(f"{name}, forged", seal_toml(text.encode()), True)
    yield Change("not UTF-8, forged", seal_toml(b'label = "\xff"\n'), True)
    yield from in_length(raw, [Field("checksum", len(body), len(raw) - len(body))], None)


def seal_toml(body: bytes) -> bytes:
    digest = hashlib.blake2b(body, digest_size=16).hexdigest()
    return body + f'checksum = "{digest}"\n'.encode()

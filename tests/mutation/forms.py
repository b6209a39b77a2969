# SPDX-License-Identifier: GPL-2.0-or-later
"""What the files of an archive and of dom0's state are made of, field by field, and every way to
get one of them wrong.
"""

import contextlib
import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from backup_vm.archive.format import (
    CHECKSUM_SIZE,
    DIGEST_SIZE,
    ENTRY_SIZE,
    FOOTER_SIZE,
    GROUP,
    INDEX_ENTRY,
    INDEX_ENTRY_SIZE,
    INDEX_MAGIC,
    PACK_HEAD_SIZE,
    SESSION_ENTRY_SIZE,
    pack_numbers,
)
from backup_vm.archive.walk import Ends, Field, walk
from wire.layout import Structure
from wire.messages import Offer

Seal = Callable[[bytes], bytes]
"""Makes all checksums of a file right again, as whoever writes a disk can."""


@dataclass(frozen=True)
class Change:
    """A file made otherwise. ``forged``: its checksums are right."""

    name: str
    raw: bytes
    forged: bool = False


def fields_of(structure: type[Structure], raw: bytes) -> list[Field]:
    """The fields of a file, as it is declared, as far as it makes sense; of rows the first and the
    last.
    """
    found = []
    with contextlib.suppress(Ends):
        for field in walk(structure, lambda at, size: raw[at : at + size], len(raw)):
            if field.size and not field.rows:
                found.append(field)
    return found


def seal_session(raw: bytes) -> bytes:
    body = raw[:-DIGEST_SIZE]
    return body + hashlib.blake2b(body, digest_size=DIGEST_SIZE).digest()


seal_exported = seal_session


def seal_pack(raw: bytes) -> bytes:
    """The index's checksum, and those of chunks that are where the index says, in both places."""
    whole, end = bytearray(raw), len(raw) - FOOTER_SIZE
    index, count = struct.unpack_from("<QI", raw, end)
    if index <= end - count * INDEX_ENTRY_SIZE:
        for at in range(index, index + count * INDEX_ENTRY_SIZE, INDEX_ENTRY_SIZE):
            offset, length, *_ = INDEX_ENTRY.unpack_from(raw, at)
            if PACK_HEAD_SIZE + ENTRY_SIZE <= offset <= index - length:
                found = xxhash.xxh3_128_digest(raw[offset : offset + length])
                next_at = at + INDEX_ENTRY_SIZE
                whole[next_at - CHECKSUM_SIZE : next_at] = found
                whole[offset - CHECKSUM_SIZE : offset] = found
        rows = bytes(whole[index : index + count * INDEX_ENTRY_SIZE])
        at = end + FOOTER_SIZE - len(INDEX_MAGIC) - CHECKSUM_SIZE
        whole[at : at + CHECKSUM_SIZE] = xxhash.xxh3_128_digest(rows)
    return bytes(whole)


def seal_partial(raw: bytes) -> bytes:
    whole, at = bytearray(raw), Offer.length()
    while at + GROUP.size <= len(raw):
        upto, count, digest = GROUP.unpack_from(raw, at)
        end = at + GROUP.size + count * SESSION_ENTRY_SIZE
        if end > len(raw):
            break
        payload = raw[at + GROUP.size : end]
        right = hashlib.blake2b(pack_numbers([upto]) + payload, digest_size=len(digest)).digest()
        whole[at : at + GROUP.size] = GROUP.pack(upto, count, right)
        at = end
    return bytes(whole)


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
    cuts = {0: "at 0", 1: "at 1", len(raw) - 1: "at the end", len(raw) // 2: "in the middle"}
    for field in fields:
        cuts.setdefault(field.at, f"before {field.name}")
        cuts.setdefault(field.at + field.size - 1, f"within {field.name}")
    for at, where in sorted(cuts.items()):
        if 0 <= at < len(raw):
            yield Change(f"cut {where}", raw[:at])
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
    yield from in_length(raw, [Field("checksum", len(raw) - 33, 33, None)], None)


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
    yield from in_length(raw, [Field("checksum", len(body), len(raw) - len(body), None)], None)


def seal_toml(body: bytes) -> bytes:
    digest = hashlib.blake2b(body, digest_size=16).hexdigest()
    return body + f'checksum = "{digest}"\n'.encode()

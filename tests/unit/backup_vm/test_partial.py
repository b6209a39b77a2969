from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive.partial import Partial
from backup_vm.archive.storage.local import LocalStorage
from wire.frames import Offer

OFFER = Offer(b"v" * 16, b"s" * 16, bytes(16), 1, 2, 3, 65536, 4, 1)
groups = st.lists(st.lists(st.integers(0, 9), unique=True).map(sorted), max_size=5)


def write(storage: LocalStorage, parts: list[list[int]]) -> tuple[str, list[int]]:
    partial, numbers = Partial.create(storage, OFFER), []
    for at, part in enumerate(parts):
        mine = [10 * at + n for n in part]
        partial.append(10 * at + 10, [(n, bytes([n % 256]) * 32) for n in mine])
        numbers += mine
    partial.close()
    return partial.name, numbers


def read(partial: Partial) -> list[int]:
    raw = b"".join(partial.numbers())
    return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]


@given(groups)
def test_what_was_stored_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]]
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("partial"))
    name, numbers = write(storage, parts)
    partial = Partial.load(storage, name)
    assert partial is not None and partial.offer == OFFER
    assert (read(partial), partial.count, partial.position) == (
        numbers,
        len(numbers),
        10 * len(parts),
    )
    assert b"".join(partial.ids()) == b"".join(bytes([n % 256]) * 32 for n in numbers)
    partial.close()


@given(groups, st.data())
def test_damage_ends_it_before_the_damage(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], data: st.DataObject
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("partial"))
    name, numbers = write(storage, parts)
    path: Path = storage.local(name)
    raw = path.read_bytes()
    at = data.draw(st.integers(Offer.length(), len(raw)))
    path.write_bytes(
        data.draw(
            st.sampled_from(
                [raw[:at], raw[:at] + bytes(b ^ 1 for b in raw[at : at + 1]) + raw[at + 1 :]]
            )
        )
    )
    partial = Partial.load(storage, name)
    assert partial is not None
    assert read(partial) == [n for n in numbers if n < partial.position]
    partial.close()

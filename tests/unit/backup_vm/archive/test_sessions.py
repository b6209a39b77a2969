# SPDX-License-Identifier: GPL-2.0-or-later
"""Session files, images and merges against a plain model: a dictionary from chunk number to id."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive import merge, sessions
from backup_vm.archive.image import Image, chain, split
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import DamagedError
from tests.conftest import QuickFolders
from wire.chunks import ZERO_ID, Keys
from wire.records import Record

KEYS, CHUNK = Keys(b"k" * 32), 65536
changes = st.dictionaries(
    st.integers(0, 11), st.integers(0, 250).map(lambda n: bytes([n]) * 32), max_size=8
)
step = st.tuples(st.integers(0, 12), st.booleans(), changes)


def record(sequence: int, chunks: int) -> bytes:
    ids = {"archive": b"a" * 16, "volume_id": b"v" * 16, "session": sequence.to_bytes(16, "big")}
    names = {
        "qube": "q",
        "volume": "v",
        "identity": "q",
        "dedup_domain": bytes(16),
        "root": bytes(32),
        "previous": bytes(32),
    }
    return Record(
        **ids,
        **names,
        suite=1,
        sequence=sequence,
        time=sequence,
        size=chunks * CHUNK,
        chunk_size=CHUNK,
    ).seal(KEYS)  # type: ignore[arg-type]


def build(
    storage: LocalStorage, steps: list[tuple[int, bool, dict[int, bytes]]]
) -> tuple[list[Session], list[list[bytes]]]:
    """Stored sessions and, for each, the ids of its image according to the model."""
    series: list[Session] = []
    images: list[list[bytes]] = []
    before: list[bytes] = []
    for sequence, (chunks, full, changed) in enumerate(steps, 1):
        full = full or not series
        entries = sorted(
            (number, chunk_id) for number, chunk_id in changed.items() if number < chunks
        )
        inherit = 0 if full else min(len(before), chunks)
        now = ([] if full else before[:chunks]) + [ZERO_ID] * (
            chunks - (0 if full else min(len(before), chunks))
        )
        for number, chunk_id in entries:
            now[number] = chunk_id
        numbers, ids = [n.to_bytes(8, "little") for n, _ in entries], [i for _, i in entries]
        series.append(
            sessions.write(
                storage,
                record(sequence, chunks),
                series[-1].clear.session if series else bytes(16),
                inherit,
                len(entries),
                numbers,
                ids,
            )
        )
        images.append(now)
        before = now
    return series, images


def ids_of(storage: LocalStorage, series: list[Session]) -> list[bytes]:
    found, missing = chain(series, series[-1])
    assert missing == bytes(16)
    image = Image(storage, found)
    return split(image.ids(0, image.chunks))


def entries(storage: LocalStorage, session: Session) -> dict[int, bytes]:
    parts = sessions.columns(storage, session).slices(3)
    return {
        n: i for numbers, ids in parts for n, i in zip(numbers.tolist(), split(ids), strict=True)
    }


@given(st.lists(step, min_size=1, max_size=6), st.data())
def test_images_and_merges_follow_the_model(
    quick_folders: QuickFolders,
    steps: list[tuple[int, bool, dict[int, bytes]]],
    data: st.DataObject,
) -> None:
    storage = LocalStorage(quick_folders.mktemp("sessions"))
    series, images = build(storage, steps)
    for at in range(len(series)):
        assert ids_of(storage, series[: at + 1]) == images[at]
    while len(series) > 1:  # remove runs of any length, each folded into the session after it
        at = data.draw(st.integers(0, len(series) - 2))
        end = data.draw(st.integers(at + 1, len(series) - 1))
        before = Counter(
            chunk_id
            for session in series[at : end + 1]
            for chunk_id in entries(storage, session).values()
        )
        with pytest.MonkeyPatch.context() as patch, storage.workspace.scratch() as superseded:
            patch.setattr(merge, "WINDOW", data.draw(st.sampled_from([1, 3, 64])))
            series[end] = merge.Merge(storage, series[at : end + 1]).store(superseded)
            superseded.seek(0)
            gone = Counter(iter(lambda: superseded.read(32), b""))
        assert gone + Counter(entries(storage, series[end]).values()) == before
        sessions.check(storage, series[end])
        for still in range(end, len(series)):  # before what was merged is removed, too
            assert ids_of(storage, series[: still + 1]) == images[still]
        del series[at:end], images[at:end]
        for still in range(len(series)):
            assert ids_of(storage, series[: still + 1]) == images[still]


def test_a_session_file_is_read_back(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (session,), _ = build(storage, [(12, True, {3: b"x" * 32, 7: b"y" * 32})])
    assert sessions.load(storage, session.file) == session
    sessions.check(storage, session)
    columns = sessions.columns(storage, session)
    assert [(numbers.tolist(), split(ids)) for numbers, ids in columns.slices(1)] == [
        ([3], [b"x" * 32]),
        ([7], [b"y" * 32]),
    ]


def test_a_session_under_another_name_is_refused(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (session,), _ = build(storage, [(12, True, {})])
    other = session.file.replace("0000000001", "0000000002")
    storage.local(session.file).rename(storage.local(other))
    with pytest.raises(DamagedError):
        sessions.load(storage, other)


def test_a_missing_session_is_noticed_by_what_builds_on_it_alone(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    entry = {1: b"x" * 32}
    series, images = build(storage, [(4, full, entry) for full in (True, False, False, True)])
    del series[1], images[1]
    assert chain(series, series[0]) == (series[:1], bytes(16))
    assert chain(series, series[1]) == (series[1:2], (2).to_bytes(16, "big"))
    assert chain(series, series[2]) == (series[2:], bytes(16))


def test_a_chain_in_a_circle_ends(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    names = [(n).to_bytes(16, "big") for n in (1, 2)]
    series = [sessions.write(storage, record(n, 4), names[2 - n], 4, 0, [], []) for n in (1, 2)]
    assert chain(series, series[1])[1] == names[1]


def test_a_base_without_inheritance_is_damage(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (session,), _ = build(storage, [(12, True, {})])
    path = storage.local(session.file)
    raw = bytearray(path.read_bytes())
    raw[24:40] = b"b" * 16
    path.write_bytes(raw)
    with pytest.raises(DamagedError):
        sessions.load(storage, session.file)


@given(st.lists(st.tuples(step, st.integers(0, 5)), min_size=2, max_size=6), st.data())
def test_any_sessions_can_go_however_the_others_build_on_them(
    quick_folders: QuickFolders,
    steps: list[tuple[tuple[int, bool, dict[int, bytes]], int]],
    data: st.DataObject,
) -> None:
    """Also after prunes that died when they had merged, and not removed yet."""
    storage = LocalStorage(quick_folders.mktemp("sessions"))
    series: list[Session] = []
    images: dict[str, list[bytes]] = {}
    for sequence, ((chunks, full, changed), back) in enumerate(steps, 1):
        base = None if full or not series else series[-1 - back % len(series)]
        inherit = min(base.chunks, chunks) if base else 0
        now = (images[base.file][:inherit] if base else []) + [ZERO_ID] * (chunks - inherit)
        new = sorted((number, i) for number, i in changed.items() if number < chunks)
        for number, chunk_id in new:
            now[number] = chunk_id
        numbers, ids = [n.to_bytes(8, "little") for n, _ in new], [i for _, i in new]
        id_of_base = base.clear.session if base else bytes(16)
        made = record(sequence, chunks), id_of_base, inherit, len(new), numbers, ids
        series.append(sessions.write(storage, *made))
        images[series[-1].file] = now
    while len(series) > 1:
        gone = data.draw(st.sets(st.sampled_from([session.file for session in series]), min_size=1))
        with storage.workspace.scratch() as superseded:
            for run, successor in list(merge.groups(series, gone)):
                if successor is not None:
                    stored = merge.Merge(storage, [*run, successor]).store(superseded)
                    series[series.index(successor)] = stored
                    sessions.check(storage, stored)
                for session in series:
                    found, missing = chain(series, session)
                    assert missing == bytes(16)
                    image = Image(storage, found)
                    assert split(image.ids(0, image.chunks)) == images[session.file]
        if data.draw(st.booleans()):  # it lived on to remove them
            series = [session for session in series if session.file not in gone]
            for session in series:
                assert chain(series, session)[1] == bytes(16)
                image = Image(storage, chain(series, session)[0])
                assert split(image.ids(0, image.chunks)) == images[session.file]
        elif data.draw(st.booleans()):
            break

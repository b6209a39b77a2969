from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.pending_log import PendingLog
from wire.status import Code, Refused

groups = st.lists(st.tuples(st.integers(1, 30), st.sets(st.integers(0, 29))), max_size=6)


def fresh(tmp_path_factory: object) -> Path:
    folder: Path = tmp_path_factory.mktemp("log")  # type: ignore[attr-defined]
    return folder / "log"


def write(path: Path, parts: list[tuple[int, set[int]]]) -> list[tuple[int, bytes]]:
    log, entries = PendingLog(path), []
    for length, changed in parts:
        start = log.position
        new = [(start + at, bytes([at]) * 32) for at in sorted(changed) if at < length]
        log.append(start + length, new)
        entries += new
    log.close()
    return entries


@given(groups)
def test_what_was_logged_is_read_back(
    tmp_path_factory: object, parts: list[tuple[int, set[int]]]
) -> None:
    path = fresh(tmp_path_factory)
    entries = write(path, parts)
    log = PendingLog(path)
    assert list(log.entries()) == entries
    assert log.position == sum(length for length, _ in parts)
    log.close()


@given(groups, st.integers(0, 200))
def test_rewinding_forgets_all_from_there_on(
    tmp_path_factory: object, parts: list[tuple[int, set[int]]], to: int
) -> None:
    path = fresh(tmp_path_factory)
    entries = write(path, parts)
    log = PendingLog(path)
    end = log.position
    log.rewind(to)
    assert log.position == min(to, end)
    assert list(log.entries()) == [entry for entry in entries if entry[0] < to]
    log.append(log.position + 1, [(log.position, b"n" * 32)])
    assert list(log.entries())[-1][1] == b"n" * 32
    log.close()


@given(groups, st.data())
def test_damage_ends_the_log_before_it(
    tmp_path_factory: object, parts: list[tuple[int, set[int]]], data: st.DataObject
) -> None:
    path = fresh(tmp_path_factory)
    entries = write(path, parts)
    raw = path.read_bytes()
    if not raw:
        return
    at = data.draw(st.integers(0, len(raw) - 1))
    path.write_bytes(
        data.draw(
            st.sampled_from(
                [raw[:at], raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :], raw + raw[:at]]
            )
        )
    )
    log = PendingLog(path)
    assert list(log.entries()) == [entry for entry in entries if entry[0] < log.position]
    log.close()


def test_the_log_is_locked_while_in_use(tmp_path: Path) -> None:
    log = PendingLog(tmp_path / "log")
    with pytest.raises(Refused) as refused:
        PendingLog(tmp_path / "log")
    assert refused.value.code == Code.BUSY
    log.close()
    PendingLog(tmp_path / "log").close()

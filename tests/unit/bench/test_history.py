# SPDX-License-Identifier: GPL-2.0-or-later
"""What make bench-guard calls slower."""

from pathlib import Path

from bench import history
from bench.measure import Measured


def run(full: float, *, content: int = 512, cpu: float = 1.0) -> history.Run:
    steps = {"full": [Measured(full * 2, cpu * 2, 1), Measured(full * 3, cpu * 3, 1)]}
    ratios = history.ratios([Measured(2, 2, 1), Measured(9, 9, 1)], steps)
    return history.Run("2026-01-01", "0.2.0", "a machine", content, 2, ratios)


def test_the_least_of_the_rounds_counts_as_a_ratio() -> None:
    assert run(0.9).ratios == {"full": {"wall": 0.9, "cpu": 1.0}}


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert history.read(path) == []
    for one in (run(0.9), run(1.1)):
        history.keep(one, path)
    assert history.read(path) == [run(0.9), run(1.1)]


def test_slower_is_told_by_step_and_only_beyond_what_varies() -> None:
    before = [run(0.8), run(0.9), run(1.0)]
    assert history.slower(run(1.1), before) == []
    assert history.slower(run(1.2), before) == ["full: wall 1.200 of zstd -3 -T2, usually 0.900"]
    assert len(history.slower(run(1.0, cpu=1.2), before)) == 1


def test_only_runs_on_as_much_data_are_compared() -> None:
    assert history.slower(run(9.0), [run(0.9, content=64)]) == []


def test_the_newest_runs_are_what_is_usual() -> None:
    old, new = [run(0.1)] * 9, [run(0.9)] * history.LATEST
    assert history.slower(run(1.0), old + new) == []


def test_the_history_that_is_kept_can_be_read() -> None:
    for one in history.read():
        assert history.slower(one, [one]) == []

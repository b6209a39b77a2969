# SPDX-License-Identifier: GPL-2.0-or-later
import threading
import time

import pytest

from common.pipeline import in_order


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_order(threads: int, count: int) -> None:
    def work(number: int) -> int:
        time.sleep(0.001 * (number % 3))
        return number * 2

    assert list(in_order(work, range(count), threads, 5)) == [number * 2 for number in range(count)]


def test_no_more_than_so_many_are_begun() -> None:
    drawn = 0

    def items():  # type: ignore[no-untyped-def]
        nonlocal drawn
        for number in range(100):
            drawn += 1
            yield number

    results = in_order(lambda number: number, items(), 2, 4)
    for taken in range(1, 50):
        next(results)
        assert drawn <= taken + 4


def test_a_failure_ends_the_work() -> None:
    done = []
    lock = threading.Lock()

    def work(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        with lock:
            done.append(number)
        return number

    with pytest.raises(ValueError, match="five"):
        list(in_order(work, range(1000), 2, 4))
    assert max(done) < 20

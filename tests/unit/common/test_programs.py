# SPDX-License-Identifier: GPL-2.0-or-later
"""Of what programs write no more is kept than there is room for, and nothing waits for them."""

import subprocess
import sys
import time
import tracemalloc

import pytest

from common import programs
from common.programs import KEPT, LastWords, TooMuch, ask

WRITING = "import sys; [sys.stderr.write('x' * 9999 + chr(10)) for _ in range(2000)]; print('done')"


def test_a_program_that_complains_without_end_ends_and_its_last_words_are_kept() -> None:
    tracemalloc.start()
    try:
        done = ask([sys.executable, "-c", f"{WRITING}; sys.exit('why')"], 60)
        assert tracemalloc.get_traced_memory()[1] < 20 * KEPT
    finally:
        tracemalloc.stop()
    assert (done.code, done.out) == (1, b"done\n")
    assert done.said.endswith("x\nwhy\n") and len(done.said) <= KEPT


def test_a_program_that_prints_more_than_is_wanted_is_killed() -> None:
    with pytest.raises(TooMuch):
        ask(["yes"], 60, 1 << 20)
    assert ask(["head", "-c", "5000", "/dev/zero"], 60, 5000).out == bytes(5000)


@pytest.mark.parametrize(
    "script", ["exec sleep 60", "sleep 60 & exec sleep 60", "exec >&-; sleep 60"]
)
def test_a_program_that_does_not_end_is_killed(script: str) -> None:
    begun = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        ask(["sh", "-c", script], 0.2)
    assert time.monotonic() - begun < 10


def test_what_a_program_leaves_behind_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the stream of complaints open, which the kernel ends only with it."""
    monkeypatch.setattr(programs, "_LAST", 0.1)
    done = ask(["sh", "-c", "sleep 5 >/dev/null & echo no >&2; exit 3"], 60)
    assert (done.code, done.said) == (3, "no\n")


def test_a_service_that_complains_without_end_is_answered_by_its_last_line() -> None:
    from backup_vm.agent.transport.spawning import spawn

    connection = spawn([sys.executable, "-c", f"{WRITING}; sys.exit('<3>why')"], None, None)
    try:
        assert connection.process.wait() == 1 and connection.last_words() == "why"
        assert isinstance(connection.log, LastWords)
    finally:
        connection.close()

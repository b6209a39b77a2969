# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that is freed stays for what is allocated next; none is dumped."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import GRAIN, Site, fill

CHURN = """
import resource, sys
from common.memory import keep_freed
if sys.argv[1] == "keep":
    keep_freed()
def churn(times):
    for _ in range(times):
        chunks = [bytearray(b"x") * (100 << 10) for _ in range(20)]
churn(5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn(50)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> int:
    return int(
        subprocess.run(
            [sys.executable, "-c", CHURN, how], check=True, capture_output=True, text=True
        ).stdout
    )


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library, which decides for itself"
)
def test_chunks_that_come_and_go_use_the_same_pages() -> None:
    assert _faults("keep") < 100 < _faults("leave")


DYING = """
import os, resource, signal, sys
from common.memory import keep_out_of_cores
os.chdir(sys.argv[1])
signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell's background job ignores it
resource.setrlimit(resource.RLIMIT_CORE, (int(sys.argv[2]), int(sys.argv[3])))
keep_out_of_cores()
os.kill(os.getpid(), signal.SIGQUIT)
"""


@pytest.mark.parametrize("before", [(1 << 30, 1 << 30), (0, 1 << 30), (1, 1), (0, 0)])
def test_no_memory_is_dumped(tmp_path: Path, before: tuple[int, int]) -> None:
    """Whatever the limit was before, and also where it cannot be raised."""
    words = [sys.executable, "-c", DYING, str(tmp_path), *map(str, before)]
    with subprocess.Popen(words) as process:
        status = os.waitpid(process.pid, 0)[1]
        process.returncode = 0
    assert os.WTERMSIG(status) == signal.SIGQUIT and not os.WCOREDUMP(status)
    assert not list(tmp_path.iterdir())


BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "words",
    [
        ("sparsebak", "--archive", "ARCHIVE", "list", "--passphrase-file", "FIFO"),
        ("sparsebak-agent", "--config", "FIFO", "status"),
        ("spbk-assemble", "-c", "ARCHIVE", "--passphrase-file", "FIFO"),
    ],
)
def test_no_command_is_dumped_while_it_may_hold_a_key(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    site = Site(tmp_path / "site")
    fill(site.image(), GRAIN)
    site.backup()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    places = {"ARCHIVE": str(site.archive), "FIFO": str(fifo)}
    command = [str(BIN / words[0]), *(places.get(word, word) for word in words[1:])]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        with open(fifo, "wb"):  # it reads the key by now
            limits = Path(f"/proc/{process.pid}/limits").read_text()
        process.wait()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4:6] in (["1", "1"], ["0", "0"])

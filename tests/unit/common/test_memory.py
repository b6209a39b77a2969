# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that is freed stays for what is allocated next."""

import platform
import subprocess
import sys

import pytest

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

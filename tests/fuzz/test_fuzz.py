# SPDX-License-Identifier: GPL-2.0-or-later
"""Every fuzz target, a little from the same seed (``make fuzz`` looks elsewhere), and on damaged
copies of real inputs.
"""

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import cannot, elsewhere
from tests.fuzz import targets

RUNS, SECONDS = 1000, 10
"""At most so many inputs of each target, for so long."""
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[int, str]]]:
    """Fuzzes a target a little: how that ended, and what was said. One process does it for all
    targets: to load what is fuzzed takes longer than to fuzz it.
    """
    if importlib.util.find_spec("atheris") is None:
        if sys.version_info >= (3, 14):
            elsewhere(
                "atheris is not there for this Python: make PYTHON=python3.13 test, after make"
                " clean"
            )
        cannot("atheris is not installed: make setup")
    folder = tmp_path_factory.mktemp("fuzz")
    command = [sys.executable, "-m", "tests.fuzz", "--asked", "--seed", "1"]
    command += ["--runs", str(RUNS), "--seconds", str(SECONDS)]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip

        def fuzz(name: str) -> tuple[int, str]:
            assert process.stdin is not None and process.stdout is not None
            log = folder / name
            process.stdin.write(f"{name} {log}\n")
            process.stdin.flush()
            return int(process.stdout.readline()), log.read_text(errors="replace")

        yield fuzz


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_short_run(name: str, fuzzer: Callable[[str], tuple[int, str]]) -> None:
    code, said = fuzzer(name)
    assert code == 0, said[-3000:]
    executed = next(line for line in said.splitlines() if "number_of_executed_units" in line)
    assert int(executed.split()[-1]) > 20, executed


@pytest.mark.parametrize("name", targets.TARGETS)
def test_damaged_copies_of_real_inputs(name: str) -> None:
    rng = random.Random(name)
    for seed in targets.seeds(name):
        targets.TARGETS[name](seed)
        for _ in range(150):
            raw = bytearray(seed)
            for _ in range(rng.randrange(1, 4)):
                kind, at = rng.randrange(4), rng.randrange(len(raw) + 1)
                if kind == 0:
                    raw[at : at + rng.randrange(1, 20)] = b""
                elif kind == 1:
                    raw[at:at] = rng.randbytes(rng.randrange(1, 20))
                elif kind == 2:
                    raw[at : at + 8] = rng.choice([b"\xff" * 8, bytes(8), b"\x00\x00\x00\x80" * 2])
                elif raw:
                    raw[at % len(raw)] ^= 1 << rng.randrange(8)
            targets.TARGETS[name](bytes(raw))


@pytest.mark.parametrize("name", targets.DECLARED)
def test_every_field_of_real_inputs_at_its_bounds(name: str) -> None:
    changes = list(targets.at_fields(name))
    for changed in changes:
        targets.TARGETS[name](changed)
    assert len(changes) > 30

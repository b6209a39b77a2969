# SPDX-License-Identifier: GPL-2.0-or-later
"""Every fuzz target, a little from the same seed (``make fuzz`` looks elsewhere), and on damaged
copies of real inputs.
"""

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import cannot, elsewhere
from tests.fuzz import targets

SECONDS = 3


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_short_run(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        if sys.version_info >= (3, 14):
            elsewhere(
                "atheris is not there for this Python: make PYTHON=python3.13 test, after make"
                " clean"
            )
        cannot("atheris is not installed: make setup")
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS), "--seed", "1"]
    here, environment = Path(__file__).parent.parent.parent, {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    executed = next(line for line in done.stderr.splitlines() if "number_of_executed_units" in line)
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

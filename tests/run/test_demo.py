# SPDX-License-Identifier: GPL-2.0-or-later
"""What the README says first works: ``make demo``, here with a small image."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_brings_every_bit_back() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/demo.py", "10"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("identical") == 2


def test_make_demo_installs_neither_packages_nor_what_only_tests_use() -> None:
    environment = {"PATH": "/usr/bin:/bin"}
    plan = subprocess.run(
        ["make", "-n", "-W", "pyproject.toml", "VENV=build/none", "demo"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "build/demo/bin/python tools/demo.py" in plan
    assert "system-packages" not in plan and "dev]" not in plan

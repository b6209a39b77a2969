# SPDX-License-Identifier: GPL-2.0-or-later
"""Mounts go by libfuse 3."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent.parent.parent
PRINT = "from backup_vm.jobs.libfuse import mfusepy; print(mfusepy.fuse_version_major)"


def test_libfuse_3_is_taken_whatever_else_is_installed() -> None:
    environment = {n: v for n, v in os.environ.items() if not n.startswith("FUSE_LIBRARY")}
    command = [sys.executable, "-c", PRINT]
    assert subprocess.check_output(command, cwd=ROOT, env=environment).strip() == b"3"

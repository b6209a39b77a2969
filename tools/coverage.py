# SPDX-License-Identifier: GPL-2.0-or-later
"""Which lines and branches of dom0's code the tests run, in all processes and in the VM of the LVM
tests: ``make coverage``.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "build" / "coverage"
HOOK = Path(sysconfig.get_path("purelib")) / "sparsebak-coverage.pth"
"""Starts measuring in every Python process of the virtual environment: services are started with a
bare environment.
"""


def main(arguments: list[str]) -> int:
    """Run the tests (those named in ``arguments``, else all) and report; exit code 1 when they fail
    or too little is run.
    """
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    settings = {
        "COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"),
        "COVERAGE_FILE": str(DATA / "data"),
    }
    HOOK.write_text(
        f"import os; os.environ.update({settings}); import coverage; coverage.process_startup()\n"
    )
    python = sys.executable
    runs = [[python, "-m", "pytest", "-q", *arguments]]
    if not arguments:
        runs = [
            [
                python,
                "-m",
                "pytest",
                "-q",
                "-n",
                "auto",
                "--ignore=tests/lvm",
                "--ignore=tests/system",
                "--ignore=tests/ceph",
                "--ignore=tests/fuzz",
            ]
        ]
        runs += [[python, "tools/lvm_vm.py", "tests/lvm", "-q", "-n", "2", "--dist", "worksteal"]]
    try:
        failed = [run for run in runs if subprocess.run(run, cwd=ROOT, check=False).returncode]
    finally:
        HOOK.unlink()
    subprocess.run([python, "-m", "coverage", "combine", "-q"], cwd=ROOT, check=True)
    return subprocess.run(
        [python, "-m", "coverage", "report", "--include=dom0_agent/*,wire/*,common/*"],
        cwd=ROOT,
        check=False,
    ).returncode or bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

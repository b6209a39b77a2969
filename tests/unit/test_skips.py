# SPDX-License-Identifier: GPL-2.0-or-later
"""What skips a test: said at the end on a user's machine, a failure in CI unless only some machines
can have it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TESTS = """
import pytest
from tests.conftest import cannot, elsewhere

@pytest.fixture
def missing():
    pytest.skip("no disk")

def test_by_a_fixture(missing): ...

@pytest.mark.skipif(True, reason="no root")
def test_by_a_mark(): ...

def test_by_the_kit():
    cannot("no root")

def test_of_some_machines():
    elsewhere("the real thing: set THING")

@pytest.mark.xfail(strict=True)
def test_known_to_fail():
    assert False
"""


@pytest.mark.parametrize("ci", ["true", ""])
def test_a_skip(ci: str, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_whole.py").write_text('import pytest; pytest.importorskip("no_such_module")')
    said = tmp_path / "skips"
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += ["-q", "--continue-on-collection-errors", "--rootdir", str(tmp_path), str(tmp_path)]
    environment = {**os.environ, "CI": ci, "SPARSEBAK_SKIPS": str(said), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    lines = sorted(said.read_text().splitlines())
    if ci:
        assert done.returncode in (1, 2) and "CI must be able to run this: no disk" in done.stdout
        assert "could not import 'no_such_module'" in done.stdout and "1 xfailed" in done.stdout
        assert lines == ["the real thing: set THING (1)"]
    else:
        assert done.returncode == 0, done.stdout
        assert lines[1:] == ["no disk (1)", "no root (2)", "the real thing: set THING (1)"]
        assert lines[0].startswith("could not import")

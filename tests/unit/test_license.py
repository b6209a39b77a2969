# SPDX-License-Identifier: GPL-2.0-or-later
"""Every source file says under which license it is."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import cannot

ROOT = Path(__file__).resolve().parents[2]
LINE = "# SPDX-License-Identifier: GPL-2.0-or-later"
SUFFIXES = {".py", ".sh", ".service", ".timer", ".socket", ".policy", ".spec", ".yml"}
MADE = {"share"}
"""Folders of what a program makes from other files."""


def sources() -> Iterator[Path]:
    """The files that git knows and somebody wrote."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = done.stdout.split("\0") if done.returncode == 0 else []
    if not any(names):
        cannot("the source is not a clone; clone it with git")
    for path in (ROOT / name for name in names if name and name.split("/")[0] not in MADE):
        if not path.is_file() or path.is_symlink():
            continue
        with open(path, "rb") as file:
            is_script = file.read(2) == b"#!"
        if is_script or path.suffix in SUFFIXES or path.name == "Makefile":
            yield path


def test_every_source_file_begins_with_its_license() -> None:
    """On the first line, or on the second where the first says which program runs the file."""
    found = list(sources())
    assert len(found) > 300
    missing = []
    for path in found:
        lines = path.read_text().splitlines()[:2]
        if LINE not in (lines[1:] if lines and lines[0].startswith("#!") else lines[:1]):
            missing.append(str(path.relative_to(ROOT)))
    assert not missing, f"add this line at the beginning: {LINE}"


def test_the_license_is_named_alike_everywhere() -> None:
    name = LINE.rpartition(" ")[2]
    for where in (
        "pyproject.toml",
        "rpm/sparsebak-dom0.spec.in",
        "rpm/sparsebak-vm.spec.in",
        "debian/copyright",
        "README.md",
    ):
        assert name in (ROOT / where).read_text(), where
    assert "GNU GENERAL PUBLIC LICENSE" in (ROOT / "LICENSE").read_text()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``make test`` runs, and what it says at the end."""

import re
from pathlib import Path

import pytest

from tests import oldest
from tools import parts
from tools.parts import Outcome, Part, report, run_all

ROOT = Path(__file__).parent.parent.parent


def test_every_part_runs_whatever_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "LOGS", tmp_path)
    first = Part("first", (("false",), ("echo", "the rest of it")))
    beside, after = (
        Part("beside", (("sh", "-c", "echo aside; exit 3"),)),
        Part("after", (("true",),)),
    )
    outcomes = run_all(((first, after), (beside,)))
    assert [(one.part, one.failed) for one in outcomes] == [
        (first, True),
        (after, False),
        (beside, True),
    ]
    said = capfd.readouterr().out
    assert (
        said.index("the rest of it")
        < said.index("beside, which ran meanwhile")
        < said.index("aside\n")
    )


def test_the_last_line_says_what_failed_or_was_not_run() -> None:
    good, bad = Outcome(Part("one", ()), False, 61.2), Outcome(Part("two", ()), True, 5)
    assert report([good], "").splitlines()[-1] == "make test: passed, all of it"
    assert report([good], "no root (3)\n").splitlines()[-1] == (
        "make test: passed, but not run here: no root (3)"
    )
    lines = report([good, bad], "no root (3)\n").splitlines()
    assert lines[-1] == "make test: FAILED: two"
    assert any(re.match(r" +one +passed in 61 s", line) for line in lines)


def test_no_folder_of_tests_is_left_out() -> None:
    """What the main part passes over has a part or a target of its own."""
    makefile = (ROOT / "Makefile").read_text()
    commands = " ".join(
        word
        for lane in parts.lanes("1")
        for part in lane
        for command in part.commands
        for word in command
    )
    for path in parts.APART:
        assert (ROOT / "tests" / path).exists()
        place = f"tests/{path}"
        assert f"{place} " in f"{commands} " or place in makefile or place == "tests/ui/in_browser"
    assert "pytest tests/ui -v" in makefile


def test_what_calls_a_library_runs_with_its_oldest_release() -> None:
    assert "wire.chunks" in oldest.users() and "wire.names" not in oldest.users()
    assert oldest.concerned(ROOT / "tests/unit/wire/test_chunks.py")
    assert not oldest.concerned(ROOT / "tests/unit/wire/test_names.py")

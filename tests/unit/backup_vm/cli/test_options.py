# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that every command has, before it and after it; helps."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from backup_vm import cli
from backup_vm.cli.options import add_common

NEEDED = {
    "serve": ["0+1"],
    "init": ["DIR", "--label", "L"],
    "report": ["-o", "F"],
    "diff": ["Q/V", "S1", "S2"],
    "restore": ["Q/V"],
    "assemble": ["Q/V", "-o", "F"],
    "mount": ["Q/V", "DIR"],
    "files": ["ls", "Q/V"],
    "delete": ["Q/V"],
    "tag": ["Q/V"],
    "export": ["Q/V", "-o", "F"],
    "import": ["F"],
    "copy": ["DIR"],
    "inspect": ["F"],
    "records": ["Q/V"],
    "open": ["QUBE"],
}
COMMON = {
    "-q": ("talk", "quiet"),
    "--quiet": ("talk", "quiet"),
    "-v": ("talk", "verbose"),
    "--verbose": ("talk", "verbose"),
    "-u": ("unattended", True),
    "--unattended": ("unattended", True),
    "--json": ("json", True),
    "--agent": ("agent", "qrexec"),
    "--archive": ("archive", "/a"),
    "--config": ("config", Path("/c")),
    "--caller": ("caller", "work"),
    "--require-mount": ("require_mount", Path("/m")),
}


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_common_options_before_and_after_the_command(command: str) -> None:
    needed = NEEDED.get(command, [])
    parser = cli.parser([command])
    assert parser.parse_args([command, *needed]).talk is None
    for option, (dest, value) in COMMON.items():
        words = [option] if value in (True, "quiet", "verbose") else [option, str(value)]
        before = parser.parse_args([*words, command, *needed])
        assert getattr(before, dest) == value
        # Before, after and in the middle are the same, defaults of all others included.
        assert vars(parser.parse_args([command, *needed, *words])) == vars(before)
        assert vars(parser.parse_args([command, *words, *needed])) == vars(before)


def test_the_last_of_two_that_contradict_each_other_counts() -> None:
    parser = cli.parser(["list"])

    def parsed(*words: str) -> argparse.Namespace:
        return parser.parse_args(words)

    assert parsed("--archive", "a", "list", "--archive", "b").archive == "b"
    assert parsed("list", "--archive", "a", "--archive", "b").archive == "b"
    assert parsed("-q", "list", "-v").talk == "verbose"
    assert parsed("-v", "list", "-q").talk == "quiet"
    assert parsed("-q", "-v", "list").talk == "verbose"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_says_what_it_does(command: str) -> None:
    parser = commands()[command]
    assert parser.description and parser.description[0].isupper()
    for action in parser._actions:
        assert action.help, f"{command} {action.dest}"


def test_a_command_keeps_an_option_of_its_own() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-v", "--variant")
    add_common(parser, again=True)
    assert parser.parse_args(["-v", "x"]).variant == "x"


@pytest.mark.parametrize("option", ["--config", "--require-mount"])
def test_paths_with_a_tilde(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    options: Any = cli.parser(["list"]).parse_args(["list", option, "~/x"])
    assert Path("/home/me/x") in vars(options).values()

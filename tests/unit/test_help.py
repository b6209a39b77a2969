# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever asks a command for --help gets a sentence on it, and on each of its arguments."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from backup_vm import cli as vm
from backup_vm.cli import spbk_assemble
from dom0_agent.admin import cli as dom0

PARSERS = {
    "sparsebak": vm.parser,
    "sparsebak-agent": dom0.parser,
    "spbk-assemble": spbk_assemble.parser,
}
OLD_NAMES = {"sparsebak-agent keys show-recovery"}
"""Still understood, but no longer listed."""


def faults(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """What is missing in the help of a parser and of those below it."""
    if not parser.description or not parser.description[0].isupper():
        yield f"{name}: no sentence"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            listed = {choice.dest: choice.help for choice in action._choices_actions}
            for word, below in action.choices.items():
                if not listed.get(word) and f"{name} {word}" not in OLD_NAMES:
                    yield f"{name} {word}: not explained in the list of {name}"
                yield from faults(f"{name} {word}", below)
        elif not action.help or action.help == argparse.SUPPRESS:
            yield f"{name}: {'/'.join(action.option_strings) or action.dest} has no help"


@pytest.mark.parametrize("name", PARSERS)
def test_every_command_and_every_argument_is_explained(name: str) -> None:
    parser = PARSERS[name]()
    assert list(faults(name, parser)) == []
    parser.format_help()  # which fails on a stray % sign


def test_an_argument_without_help_is_found() -> None:
    parser = argparse.ArgumentParser(description="A command.")
    parser.add_argument("--new")
    parser.add_subparsers().add_parser("below", help="a command below")
    assert list(faults("it", parser)) == ["it: --new has no help", "it below: no sentence"]


@pytest.mark.parametrize("name", PARSERS)
def test_usage_in_a_log_has_no_colours_of_the_terminal_beside_it(name: str) -> None:
    """Standard error may go to a log while standard output is a terminal: from Python 3.14 on
    argparse asks the latter whether it has colours.
    """
    start = f"from {PARSERS[name].__module__} import main; main()"
    ours, theirs = os.openpty()
    unsaid = ("NO_COLOR", "FORCE_COLOR", "PYTHON_COLORS")
    environment = {word: value for word, value in os.environ.items() if word not in unsaid}
    done = subprocess.run(
        [sys.executable, "-c", start, "--nonsense"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environment | {"TERM": "xterm-256color"},
        check=False,
    )
    os.close(theirs)
    os.close(ours)
    assert b"usage: " in done.stderr
    assert b"\x1b" not in done.stderr

# SPDX-License-Identifier: GPL-2.0-or-later
"""Man pages and shell completion, made from the command lines' own parsers: ``make pages`` writes
them to ``share/``.

They are kept in the tree so that packages need nothing but make to be built; a test says when they
are out of date.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shtab
from argparse_manpage.manpage import Manpage

from backup_vm import cli as vm
from backup_vm.cli.options import GENERAL
from dom0_agent.admin import cli as dom0
from wire import VERSION

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "sparsebak": (vm.parser, 1, "sparsebak-vm"),
    "sparsebak-agent": (dom0.parser, 8, "sparsebak-dom0"),
}
SHELLS = {
    "bash": "bash-completion/completions/{0}",
    "zsh": "zsh/site-functions/_{0}",
    "fish": "fish/vendor_completions.d/{0}.fish",
}


def pages() -> Iterator[tuple[str, str]]:
    """Path under ``share/<package>`` and contents of each."""
    os.environ["COLUMNS"] = "100"
    for name, (parser, section, package) in COMMANDS.items():
        yield (
            f"{package}/man/man{section}/{name}.{section}",
            _manual(name, _once(parser()), section),
        )
        for shell, path in SHELLS.items():
            yield (
                f"{package}/{path.format(name)}",
                shtab.complete(_plain(parser()), shell).rstrip("\n") + "\n",
            )


def _plain(parser: Any) -> Any:
    parser.prog = parser.prog.split()[0]
    return parser


def _once(parser: Any) -> Any:
    """The same without the options that every command repeats: a manual says once what holds for
    all.
    """
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        for command in action.choices.values():
            repeated = [group for group in command._action_groups if group.title == GENERAL]
            for group in repeated:
                command._action_groups.remove(group)
                for option in group._group_actions:
                    command._actions.remove(option)
            _once(command)
    return parser


def _manual(name: str, parser: Any, section: int) -> str:
    parser.man_short_description = parser.description.rstrip(".").lower()
    data = {
        "project_name": "sparsebak",
        "version": VERSION,
        "manual_title": "sparsebak",
        "manual_section": section,
    }
    text = str(Manpage(parser, format="single-commands-section", _data=data))
    text = re.sub("^'", r"\\&'", text, flags=re.M)  # or roff takes the line for a request
    return re.sub(
        r"^\.TH .*$",
        f'.TH {name.upper()} "{section}" "" "sparsebak {VERSION}" "sparsebak"',
        text,
        count=1,
        flags=re.M,
    )


def main() -> int:
    for path, text in pages():
        target = ROOT / "share" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: GPL-2.0-or-later
"""argparse for commands that are short."""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

PLAIN: dict[str, Any] = {"color": False} if sys.version_info >= (3, 14) else {}
"""For argparse, which from Python 3.14 on colours usage and help where standard output is a
terminal: also the usage of a wrong command, which goes to standard error, and that to a log.
"""


class _Trying(argparse.HelpFormatter):
    """Sees whether lines can be made. What Python 3.14 knows of colours is imported for a line
    that has some, and not for each that is tried: with it come dataclasses and inspect, some 20 ms
    of a command that takes 100.
    """

    def _set_color(self, *_: Any, **__: Any) -> None:
        """Nothing is coloured: see PLAIN. Its arguments are others from version to version."""

    def __getattr__(self, name: str) -> Any:
        """What that would have set, for a line that is really made."""
        if "_colors_set" not in vars(self):
            vars(self)["_colors_set"] = True
            super()._set_color(False)  # type: ignore[misc]
        try:
            return vars(self)[name]
        except KeyError:
            raise AttributeError(name) from None


class Parser(argparse.ArgumentParser):
    """A parser that asks for the terminal's width when it prints help, and not before, and whose
    --help and --version fail where they cannot be printed; argparse ignores that.
    """

    def __init__(self, **settings: Any) -> None:
        # Of each option that is declared argparse makes its line of help, to see whether that can
        # be made. Without a width it asks for that, and imports shutil: 2 ms, for the programs
        # that unpack archives.
        super().__init__(**{**PLAIN, **settings}, formatter_class=partial(_Trying, width=80))

    def add_commands(
        self, package: str, there: Sequence[str], words: Sequence[str]
    ) -> Mapping[str, argparse.ArgumentParser]:
        """Declare the commands of a package, one module each with ``add_to(commands)``: those among
        ``words``, if any is, and none where they ask for the version, for to import all takes time.
        Their parsers, by name.
        """
        commands = self.add_subparsers(
            dest="command", required=True, metavar="COMMAND", prog=self.prog
        )
        named = [name for name in there if name in words]
        for name in named or ([] if words == ["--version"] else there):
            importlib.import_module(f"{package}.{name.replace('-', '_')}").add_to(commands)
        return commands.choices

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is not sys.stdout:
            super()._print_message(message, file)
            return
        file.write(message)
        file.flush()

    def format_help(self) -> str:
        """The help."""
        self.formatter_class = argparse.HelpFormatter
        return super().format_help()

    def format_usage(self) -> str:
        """Its first lines."""
        self.formatter_class = argparse.HelpFormatter
        return super().format_usage()

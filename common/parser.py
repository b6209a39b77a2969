# SPDX-License-Identifier: GPL-2.0-or-later
"""argparse for commands that are short."""

import argparse
from functools import partial
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser that asks for the terminal's width when it prints help, and not before."""

    def __init__(self, **settings: Any) -> None:
        # Of each option that is declared argparse makes its line of help, to see whether that can
        # be made. Without a width it asks for that, and imports shutil: 2 ms, for the programs
        # that unpack archives.
        super().__init__(**settings, formatter_class=partial(argparse.HelpFormatter, width=80))

    def format_help(self) -> str:
        """The help."""
        self.formatter_class = argparse.HelpFormatter
        return super().format_help()

    def format_usage(self) -> str:
        """Its first lines."""
        self.formatter_class = argparse.HelpFormatter
        return super().format_usage()

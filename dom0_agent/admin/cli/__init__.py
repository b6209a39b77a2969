# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent``: the few commands of dom0's administrator, one module each."""

import argparse
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from common.memory import collect_rarely, keep_out_of_cores
from common.parser import Parser
from common.text import printable
from dom0_agent.admin import streams
from dom0_agent.config import DEFAULT_PATH, ConfigError
from wire import VERSION
from wire.names import BadName
from wire.status import Refused

COMMANDS = (
    "setup",
    "archive",
    "keys",
    "volumes",
    "monitor",
    "status",
    "backup",
    "check",
    "settings",
    "grant",
    "open",
    "forget",
    "rename",
    "serve",
    "import-ini",
)


OPTIONAL = {"settings": "sparsebak-dom0-settings"}
"""Commands that are in packages of their own."""
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}", re.ASCII)


class UserError(Exception):
    """A mistake that the user can mend; the text says what is wrong and what to do."""


def mib(size: int) -> str:
    """A number of bytes, for people."""
    return f"{size / (1 << 20):,.1f} MiB"


def confirm(options: argparse.Namespace, question: str, word: str = "") -> None:
    """Ask before something is destroyed; UserError when the answer is not yes, or nobody is there
    to ask.

    With ``word`` that has to be typed, where a yes comes too easily.
    """
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{question} That needs --yes when there is no terminal to ask on")
    answer = input(f"{question} {f'Type {word} to continue: ' if word else '[y/N] '}").strip()
    if answer != word if word else answer.lower() not in ("y", "yes"):
        raise UserError("nothing was changed")


def yes_option(command: argparse.ArgumentParser) -> None:
    """Declare --yes."""
    command.add_argument("--yes", action="store_true", help="do not ask")


def user_option(command: argparse.ArgumentParser, what: str) -> None:
    """Declare --user, which becomes a part of what qrexec is asked for."""
    command.add_argument(
        "--user", type=_user, default="user", help=f"{what} (default: %(default)s)"
    )


def _user(text: str) -> str:
    if not _USER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no name that a user can have")
    return text


def parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line, with those commands that ``words`` need: see Parser.add_commands."""
    top = Parser(
        prog="sparsebak-agent",
        description="The dom0 side of sparsebak: keys of archives, snapshots, restored settings.",
        epilog=(
            "Exit codes: 0 done; 1 failed; 2 wrong usage; 130 interrupted (128 and the number of"
            " any other signal). General options can be given before or after COMMAND."
        ),
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    there = [name for name in COMMANDS if name not in OPTIONAL or _module_of(name)]
    top.add_commands("dom0_agent.admin.cli", there, words)
    _common(top, config=DEFAULT_PATH, unattended=False, quiet=False, verbose=False, json=False)
    return top


def _module_of(name: str) -> bool:
    """Whether the module of a command is installed."""
    return importlib.util.find_spec(f"dom0_agent.admin.cli.{name}") is not None


def _common(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Declare what every command takes, before its name and after it.

    A command's own parser sets nothing that was not typed there (SUPPRESS): it would undo what
    stands before the name.
    """
    declared = {action.dest: action for action in parser._actions}
    group = parser if defaults else parser.add_argument_group("general options")
    for flags, named in _COMMON:
        dest = flags[-1].removeprefix("--")
        action = declared.get(dest) or group.add_argument(*flags, **named)
        action.default = defaults.get(dest, argparse.SUPPRESS)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _common(below)


_COMMON: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("--config",),
        {"type": Path, "metavar": "FILE", "help": f"configuration file (default: {DEFAULT_PATH})"},
    ),
    (
        ("-u", "--unattended"),
        {
            "action": "store_true",
            "help": "never ask; where an answer would be needed, fail",
        },
    ),
    (("-q", "--quiet"), {"action": "store_true", "help": "print nothing but errors"}),
    (("-v", "--verbose"), {"action": "store_true", "help": "print more"}),
    (("--json",), {"action": "store_true", "help": "print data as JSON, for programs"}),
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors are one line on standard error."""
    collect_rarely()
    try:
        if argv is None:
            _as_a_process()
        words = sys.argv[1:] if argv is None else argv
        for name in OPTIONAL.keys() & set(words[:1]):
            if not _module_of(name):
                _tell(f"command {name} is in a package of its own; install {OPTIONAL[name]}")
                return 2
        options = parser(words).parse_args(words)
        if options.unattended:
            # Nobody is there to ask. Not by ``open``, which is a command's module here.
            sys.stdin = Path(os.devnull).open()
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except (UserError, ConfigError, BadName, Refused) as error:
        _tell(str(error))
    except BrokenPipeError:
        streams.print_no_more()
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = "; run it as the owner or as root" if isinstance(error, PermissionError) else ""
        _tell(f"{where}{error.strerror or error}{advice}")
        if error.filename in (None, streams.OUTPUT):
            streams.print_no_more()
    except (KeyboardInterrupt, EOFError):
        return 130
    except Exception:
        # Python 3.11 makes a RuntimeError of what is raised in a __set_name__, and each enumeration
        # of a module that is being imported has some.
        if not _came:
            raise
        return 128 + _came
    return 1


def _as_a_process() -> None:
    """What a command is for the system: it ends cleanly on a signal, and prints whatever the
    locale is.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _end)
    keep_out_of_cores()
    streams.prepare()


_came = 0
"""The signal that ends the command, if one does."""


def _end(number: int, frame: FrameType | None) -> None:
    """Let what was begun be put right on the way out, as after an error; a second signal ends it at
    once.
    """
    global _came
    _came = number
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _tell(error: str) -> None:
    print(f"sparsebak-agent: {printable(error)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

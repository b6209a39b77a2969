# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that every command has, and that may stand before it or after it; and pieces that several
commands declare.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from backup_vm.errors import UsageError
from backup_vm.paths import expanded
from backup_vm.terminal import output
from common.parser import Parser as BaseParser
from common.text import parse_seconds

if TYPE_CHECKING:
    from backup_vm.quantities import Part

GENERAL = "general options"
Value = TypeVar("Value")


class Parser(BaseParser):
    """A parser that prints as the commands do: where the reader has gone it ends as they do."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stderr:  # None is a standard output that is closed
            output.complain(message.rstrip("\n"))
        else:
            output.put(message.rstrip("\n"))


def add_common(parser: argparse.ArgumentParser, again: bool = False) -> None:
    """Declare the options of every command. ``again``: after the command, where they must have no
    default, which would undo what was given before it."""

    def option(*names: str, **settings: Any) -> None:
        # With a name already taken, a command has a meaning of its own for it.
        if not any(name in parser._option_string_actions for name in names):
            settings["default"] = argparse.SUPPRESS if again else settings.get("default")
            group.add_argument(*names, **settings)

    group = parser.add_argument_group(GENERAL) if again else parser
    _place_options(option)
    _talk_options(option)


def _place_options(option: Callable[..., None]) -> None:
    option(
        "--agent",
        type=given,
        metavar="AGENT",
        help="'qrexec'; without Qubes 'local:AGENT.TOML', or 'unix:DIR' of a resident agent",
    )
    option(
        "--archive",
        type=given,
        metavar="DIR",
        help="the archive's folder, or its URL: s3://, gs://, az://, sftp://",
    )
    option(
        "--as-of",
        type=_moment,
        metavar="TIME",
        help="read it as it was then (2026-11-20T08:30, in UTC), in a bucket that keeps versions",
    )
    option(
        "--config",
        type=path,
        metavar="FILE",
        help="settings file (default: ~/.config/sparsebak/config.toml)",
    )
    option("--require-mount", type=path, metavar="DIR", help="do nothing unless this is mounted")
    option(
        "--caller",
        type=given,
        metavar="NAME",
        help="with a local agent: call in the name of this qube (default: dom0)",
    )


def _talk_options(option: Callable[..., None]) -> None:
    for names, word, text in (
        (("-q", "--quiet"), "quiet", "print nothing but errors"),
        (("-v", "--verbose"), "verbose", "print more, also where there is no terminal"),
    ):
        option(*names, action="store_const", const=word, dest="talk", help=text)
    option(
        "-u",
        "--unattended",
        action="store_true",
        default=False,
        help="never ask; where an answer would be needed, fail",
    )
    option("--json", action="store_true", default=False, help="print data as JSON, for programs")
    option(
        "--progress-fd",
        type=int,
        metavar="N",
        help="write progress, a line of JSON at a time, to this open descriptor",
    )


def _moment(text: str) -> str:
    """A moment, as it was written."""
    from backup_vm.archive.storage.past import parse_moment

    checked(parse_moment)(text)
    return text


def given(text: str) -> str:
    """An option's value that says something: an empty one, as of a variable that a script forgot
    to set, would stand for what the settings say, or for anything.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def path(text: str) -> Path:
    """A path as an option's value: ``~`` at its beginning is the home folder."""
    try:
        return Path(expanded(given(text)))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def key_option(parser: argparse.ArgumentParser, grant: bool = False) -> None:
    """Declare --passphrase-file, and with ``grant`` --grant, which can take its place."""
    group = parser.add_mutually_exclusive_group() if grant else parser
    if grant:
        group.add_argument(
            "--grant",
            type=path,
            metavar="F",
            help=(
                "what 'sparsebak-agent grant' made in dom0, which opens some sessions of one"
                " volume; - is standard input"
            ),
        )
    group.add_argument(
        "--passphrase-file",
        type=path,
        metavar="F",
        help="passphrase or recovery key, in a file's first line",
    )


def checked(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """A parser of text that raises ValueError, as an option's type: its words are the error."""

    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def retention_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare --retention."""
    parser.add_argument(
        "--retention",
        type=_retention,
        metavar="TIME",
        help=f"{what} (from 1d to 366d), by object lock, which the bucket must have",
    )


def _retention(text: str) -> int:
    from backup_vm.jobs.keep_rules import parse_retention

    return checked(parse_retention)(text)


def part_options(parser: argparse.ArgumentParser, what: str, done: str) -> None:
    """Declare --sample and --older-than, for a check that can be done a part at a time."""
    parser.add_argument(
        "--sample",
        type=_part,
        metavar="PART",
        help=f"only a part of the {what}, such as 5%% or 20G of their bytes, oldest check first",
    )
    parser.add_argument(
        "--older-than",
        type=duration,
        metavar="TIME",
        help=f"only {what} not {done} in the last TIME, such as 30d or 1m",
    )


def rate_option(parser: argparse.ArgumentParser) -> None:
    """Declare --limit-rate."""
    parser.add_argument(
        "--limit-rate",
        type=_rate,
        metavar="RATE",
        help="bytes of the archive to write or read in a second, at most, such as 20M",
    )


def wait_option(parser: argparse.ArgumentParser) -> None:
    """Declare --lock-wait."""
    parser.add_argument(
        "--lock-wait",
        type=checked(parse_seconds),
        default=0,
        metavar="SECONDS",
        help="while another run has the archive, wait for it, this long at most (default: 0)",
    )


def moment_options(parser: argparse.ArgumentParser) -> None:
    """Declare --not-on-battery and --not-metered."""
    parser.add_argument(
        "--not-on-battery", action="store_true", help="do nothing while the machine is on battery"
    )
    parser.add_argument(
        "--not-metered",
        action="store_true",
        help="do nothing while the network link is metered, as NetworkManager tells",
    )


# Imported when they are called: most commands are given none of these.


@checked
def _part(text: str) -> "Part":
    from backup_vm.quantities import parse_part

    return parse_part(text)


@checked
def duration(text: str) -> int:
    """Seconds of a length of time, as an option's type."""
    from backup_vm.jobs.keep_rules import parse_duration

    return parse_duration(text)


@checked
def _rate(text: str) -> int:
    from backup_vm.rate import parse_rate

    return parse_rate(text)


def volume_argument(parser: argparse.ArgumentParser, text: str = "the volume") -> None:
    """Declare the one volume that a command is about."""
    parser.add_argument("volume", metavar="QUBE/VOLUME", help=text)


def space_option(parser: argparse.ArgumentParser) -> None:
    """Declare --space and --no-space."""
    text = "show the space used (default: only when that is quick)"
    parser.add_argument("--space", action=argparse.BooleanOptionalAction, default=None, help=text)


def yes_option(parser: argparse.ArgumentParser) -> None:
    """Declare --yes."""
    parser.add_argument("--yes", action="store_true", help="do not ask")


def dry_run_option(parser: argparse.ArgumentParser, text: str) -> None:
    """Declare --dry-run."""
    parser.add_argument("-n", "--dry-run", action="store_true", help=text)


def _percent(text: str) -> int:
    from backup_vm.jobs.guard import parse_percent

    return checked(parse_percent)(text)


def guard_options(parser: argparse.ArgumentParser) -> None:
    """Declare --max-removed and --min-age; see ``backup_vm.jobs.guard``."""
    parser.add_argument(
        "--max-removed",
        type=_percent,
        metavar="SHARE",
        help="leave a volume as it is of which all sessions of more than this share of its days"
        " would go at once (default: 50%%); 100%% lets all go",
    )
    parser.add_argument(
        "--min-age",
        type=duration,
        metavar="TIME",
        help="keep sessions that are newer, and let no session that was stored since push out an"
        " older one (default: 3d); 0d for no such rule",
    )


def session_option(
    parser: argparse.ArgumentParser, default: str = "latest", every: bool = False
) -> None:
    """Declare --session for commands that take one, or with ``every`` all."""
    names = "'latest', or 'all'" if every else "or 'latest'"
    parser.add_argument(
        "--session",
        type=given,
        default=default,
        metavar="S",
        help=f"its time, the beginning of it, a tag, {names} (default: {default})",
    )


def parity_option(parser: argparse.ArgumentParser) -> None:
    """Declare --parity."""
    parser.add_argument(
        "--parity",
        type=_share,
        nargs="?",
        const=0.1,
        metavar="SHARE",
        help="then make parity for all that has none, or has changed: SHARE of the archive's size"
        " (default: 10%%)",
    )


@checked
def _share(text: str) -> float:
    from backup_vm.quantities import parse_share

    return parse_share(text)

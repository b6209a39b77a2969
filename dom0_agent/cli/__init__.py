"""``sparsebak-agent``: the few commands of dom0's administrator, one module each."""

import argparse
import importlib
import os
import sys
from collections.abc import Collection
from pathlib import Path

from dom0_agent.config import DEFAULT_PATH, ConfigError
from wire import VERSION
from wire.memory import collect_rarely
from wire.names import BadName, printable
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
    "forget",
    "serve",
    "import-ini",
)


class UserError(Exception):
    """A mistake that the user can mend; the text says what is wrong and what to do."""


def mib(size: int) -> str:
    """A number of bytes, for people."""
    return f"{size / (1 << 20):,.1f} MiB"


def parser(words: Collection[str] = ()) -> argparse.ArgumentParser:
    """The command line. Of the commands only those among ``words``, if any is: to import the others takes time."""
    top = argparse.ArgumentParser(
        prog="sparsebak-agent",
        description="The dom0 side of sparsebak: archives and their keys, walking snapshots, status.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage.",
    )
    top.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_PATH,
        help="configuration file (default: %(default)s)",
    )
    top.add_argument(
        "-u",
        "--unattended",
        action="store_true",
        help="never ask; where an answer would be needed, fail",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", prog=top.prog)
    for name in [name for name in COMMANDS if name in words] or COMMANDS:
        importlib.import_module(f"dom0_agent.cli.{name.replace('-', '_')}").add_to(commands)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors are one line on standard error."""
    collect_rarely()
    words = sys.argv[1:] if argv is None else argv
    options = parser(words).parse_args(words)
    if options.unattended:
        sys.stdin = open(os.devnull)  # nobody is there to ask
    try:
        return int(options.run(options))
    except (UserError, ConfigError, BadName, Refused) as error:
        _tell(str(error))
    except BrokenPipeError:
        pass
    except PermissionError as error:
        _tell(f"{error.filename}: {error.strerror}; run it as the owner or as root")
    except OSError as error:
        _tell(f"{error.filename or ''}: {error.strerror}")
    except KeyboardInterrupt:
        return 130
    return 1


def _tell(error: str) -> None:
    print(f"sparsebak-agent: {printable(error)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

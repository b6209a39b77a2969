"""``sparsebak``: one module for each command, each with ``add_to(commands)`` that declares it and a ``run(options)``."""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from types import FrameType

from backup_vm import stopping
from backup_vm.errors import Exit, SparsebakError
from backup_vm.text import journal_prefix
from wire import VERSION
from wire.memory import collect_rarely, keep_freed
from wire.names import printable

COMMANDS = (
    *("init", "backup", "list", "status", "report", "diff", "restore", "assemble", "mount"),
    *("verify", "scrub", "prune", "delete", "tag", "export", "import", "copy", "keys", "doctor"),
)
_EPILOG = """exit codes: 0 done; 1 failed; 2 wrong usage; 3 some volumes failed; 4 damage found; 5 the agent refused or
cannot be reached; 10 no archive there; 11 archive in use; 12 wrong or no key; 130 interrupted.
The environment variables SPARSEBAK_AGENT and SPARSEBAK_ARCHIVE stand in for --agent and --archive."""


def parser(words: Collection[str] = ()) -> argparse.ArgumentParser:
    """The command line. Of the commands only those among ``words``, if any is: to import the others takes time."""
    top = argparse.ArgumentParser(
        prog="sparsebak", description="Incremental backup of disk images.", epilog=_EPILOG
    )
    top.add_argument(
        "--agent",
        metavar="AGENT",
        help="'qrexec'; without Qubes 'local:AGENT.TOML', or 'unix:DIR' of a resident agent",
    )
    top.add_argument(
        "--archive",
        metavar="DIR",
        help="the archive's directory, or its URL: s3://, gs://, az://, sftp://",
    )
    top.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings (default: ~/.config/sparsebak/config.toml)",
    )
    top.add_argument(
        "--require-mount", type=Path, metavar="DIR", help="do nothing unless this is a mount point"
    )
    top.add_argument(
        "--caller",
        metavar="NAME",
        help="with a local agent: call in the name of this qube (default: dom0)",
    )
    top.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    top.add_argument(
        "-v", "--verbose", action="store_true", help="say more, also where there is no terminal"
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
        importlib.import_module(f"backup_vm.cli.{name}").add_to(commands)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; an error is one line, with a hint, on standard error."""
    collect_rarely()
    words = sys.argv[1:] if argv is None else argv
    options = parser(words).parse_args(words)
    stopping.forget()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # numpy's: nothing here multiplies matrices, and its threads spin
    keep_freed()
    try:
        return int(options.run(options))
    except SparsebakError as error:
        _tell(error)
        return error.code
    except BrokenPipeError:
        sys.stderr.close()
        return Exit.FAILED
    except OSError as error:
        _tell(SparsebakError(f"{error.filename or options.command}: {error.strerror or error}"))
        return Exit.FAILED
    except KeyboardInterrupt:
        print(
            f"{journal_prefix(4)}sparsebak: interrupted; what was stored is kept", file=sys.stderr
        )
        return Exit.INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    stopping.ask()
    raise KeyboardInterrupt


def _tell(error: SparsebakError) -> None:
    hint = f" ({error.hint})" if error.hint else ""
    print(
        f"{journal_prefix(3)}sparsebak: {printable(' '.join(f'{error}{hint}'.split()))}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())

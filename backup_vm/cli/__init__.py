# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak``: one module for each command, each with ``add_to(commands)`` that declares it and a
``run(options)``.
"""

import argparse
import atexit
import os
import sys
from collections.abc import Sequence

from backup_vm import failures
from backup_vm.cli.options import Parser, add_common
from backup_vm.errors import Exit, SparsebakError
from backup_vm.terminal import interrupts, output
from backup_vm.terminal.text import journal_prefix
from common.memory import collect_rarely, keep_freed, keep_out_of_cores
from common.text import printable
from wire import VERSION

COMMANDS = (
    "init",
    "backup",
    "list",
    "status",
    "report",
    "diff",
    "restore",
    "assemble",
    "mount",
    "files",
    "verify",
    "drill",
    "scrub",
    "prune",
    "delete",
    "tag",
    "export",
    "import",
    "copy",
    "keys",
    "records",
    "serve",
    "open",
    "doctor",
    "inspect",
    "unlock",
    "wait",
    "upkeep",
    "ui",
)
_EPILOG = """exit codes: 0 done; 1 failed; 2 wrong usage; 3 some volumes failed; 4 damage found;
5 the agent refused or cannot be reached; 10 no archive there; 11 archive in use; 12 wrong or no
key; 13 not now: on battery or a metered link; 130 interrupted (128 and the number of any other
signal). The environment variables SPARSEBAK_AGENT and SPARSEBAK_ARCHIVE take the place of --agent
and --archive. General options can be given before or after COMMAND; of two that contradict each
other the last one counts."""


def parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line, with those commands that ``words`` need: see Parser.add_commands."""
    top = Parser(prog="sparsebak", description="Incremental backup of disk images.", epilog=_EPILOG)
    add_common(top)
    top.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    commands = top.add_commands("backup_vm.cli", COMMANDS, words)
    if not words or not commands.keys().isdisjoint(words):  # else none is called
        for command in commands.values():
            add_common(command, again=True)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; an error is one line, with a hint, on standard error."""
    try:
        if argv is None:
            keep_out_of_cores()
            output.prepare()
        collect_rarely()
        # numpy's: nothing here multiplies matrices, and its threads spin
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        keep_freed()
        with interrupts.handled(process=argv is None):
            code = _run(sys.argv[1:] if argv is None else argv)
            interrupts.over()
    except (KeyboardInterrupt, Exception) as error:
        if not isinstance(error, KeyboardInterrupt) and not interrupts.came():
            raise
        if interrupts.first_to_tell():
            output.complain(f"{journal_prefix(4)}{interrupts.MESSAGE}")
        code = interrupts.exit_code()
    if argv is None and "obstore" in sys.modules:
        # Its threads may come back to a Python that is half gone, and abort: one run in fifty.
        atexit._run_exitfuncs()
        os._exit(code)
    return code


def _run(words: list[str]) -> int:
    """Parse and run; every error ends here."""
    try:
        try:
            options = parser(words).parse_args(words)
            return int(options.run(options))
        finally:
            output.flush()
    except SparsebakError as error:
        _tell(error)
        return error.code
    except output.ReaderGone:
        return Exit.READER_GONE
    except OSError as error:
        _tell(SparsebakError(failures.text(error), failures.hint(error)))
        return Exit.FAILED


def _tell(error: SparsebakError) -> None:
    line = printable(" ".join(error.line().split()))
    output.complain(f"{journal_prefix(3)}sparsebak: {line}")


if __name__ == "__main__":
    sys.exit(main())

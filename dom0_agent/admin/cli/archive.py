# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent archive add|list|caller|remove``: make an archive's key in dom0 and say who may
use it.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from common.text import session_name
from dom0_agent.admin import archives
from dom0_agent.admin.cli import UserError, confirm, yes_option
from dom0_agent.admin.leftovers import drop_archive
from dom0_agent.config import load
from dom0_agent.keyring import ArchiveKey, Keyring
from wire import CHUNK_SIZES, DEDUP_DOMAIN_SIZE, DEFAULT_CHUNK_SIZE, slots
from wire.chunks import KEY_SIZE, SUITES, ChunkIds, Keys
from wire.messages import MODE_OPEN
from wire.names import parse_name
from wire.slots import first_line, recovery_text

_UNITS = {f"{size >> 10}K": size for size in CHUNK_SIZES} | {
    f"{size >> 20}M": size for size in CHUNK_SIZES if size >> 20
}


def add_to(commands: Any) -> None:
    """Declare the command."""
    archive = commands.add_parser(
        "archive",
        help="create, list or forget archives",
        description="Creates, lists and forgets archives, whose keys are kept in dom0.",
    )
    actions = archive.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_add(actions)
    show = actions.add_parser(
        "list",
        help="show the archives whose keys are kept here",
        description="Shows the archives whose keys are kept here, and who may use them.",
    )
    show.set_defaults(run=_list)
    caller = actions.add_parser(
        "caller",
        help="let another backup VM use an archive, in place of the one before",
        description=(
            "Lets another backup VM use an archive, and the one before no more: it was replaced, or"
            " renamed. What is known of volumes stays, so that the next backup sends what changed."
        ),
    )
    caller.add_argument("label", metavar="LABEL", help="the archive's label")
    caller.add_argument("name", metavar="NAME", help="the backup VM that may use the archive now")
    caller.set_defaults(run=_caller)
    remove = actions.add_parser(
        "remove",
        help="forget an archive and its key; its recovery key or passphrase still opens it",
        description=(
            "Forgets an archive and its key, after asking. The archive's files stay, and its"
            " passphrase or its recovery key still opens them."
        ),
    )
    remove.add_argument("label", metavar="LABEL", help="the archive's label")
    yes_option(remove)
    remove.set_defaults(run=_remove)


def _add_add(actions: Any) -> None:
    add = actions.add_parser(
        "add",
        help="create an archive's key; the backup VM then runs: sparsebak init DIR --label LABEL",
        description=(
            "Creates an archive's key: asks for a passphrase, and prints a recovery key. The backup"
            " VM then makes the archive with: sparsebak init DIR --label LABEL"
        ),
    )
    add.add_argument("label", metavar="LABEL", help="a name for the archive")
    add.add_argument(
        "--caller", required=True, metavar="NAME", help="the backup VM that may use the archive"
    )
    add.add_argument(
        "--open",
        action="store_true",
        help="leave the key in the archive: for a backup VM and a disk that are trusted",
    )
    passphrase_option(add, "the passphrase")
    add.add_argument(
        "--chunk-size",
        choices=_UNITS,
        default=f"{DEFAULT_CHUNK_SIZE >> 10}K",
        metavar="SIZE",
        help="bytes of a chunk: a power of two from 64K to 4M (default: %(default)s)",
    )
    add.add_argument(
        "--hash",
        choices=SUITES.values(),
        help="hash for chunk ids (default: the one that this processor computes faster)",
    )
    add.set_defaults(run=_add)


def passphrase_option(command: argparse.ArgumentParser, what: str) -> None:
    """Declare --passphrase-file, of a file that has ``what``."""
    command.add_argument(
        "--passphrase-file", type=Path, metavar="F", help=f"{what}, in a file's first line"
    )


def _add(options: argparse.Namespace) -> int:
    keyring = Keyring(load(options.config).state_dir)
    label, caller = parse_name(options.label, "label"), parse_name(options.caller, "caller")
    if keyring.by_label(label) is not None:
        raise UserError(f"there is an archive labelled {label} already; choose another label")
    if options.open and options.passphrase_file:
        raise UserError(
            "an open archive has its key beside it and takes no passphrase; leave --open or"
            " --passphrase-file out"
        )
    passphrase = None if options.open else new_passphrase(options.passphrase_file)
    suite = (
        next((number for number, name in SUITES.items() if name == options.hash), None)
        or fastest_suite()
    )
    archive, recovery = archives.add(
        keyring, label, caller, suite, _UNITS[options.chunk_size], passphrase
    )
    printed = recovery_text(recovery) if recovery else None
    if options.json:
        print(json.dumps({"label": label, "id": archive.id.hex(), "recovery_key": printed}))
        return 0
    print(
        f"Archive {label} ({archive.id.hex()}), {'sealed' if recovery else 'open'}, ids by"
        f" {SUITES[suite]}, for {caller}."
    )
    if recovery:
        print_recovery(recovery)
    print(f"In {caller}, run: sparsebak init DIR --label {label}")
    return 0


def fastest_suite() -> int:
    """The suite whose chunk ids this processor makes faster: SHA-256 where it has instructions for
    it, else BLAKE2b.
    """
    chunk = bytes(DEFAULT_CHUNK_SIZE)

    def seconds(suite: int) -> float:
        keys = Keys(bytes(KEY_SIZE)).of_domain(bytes(DEDUP_DOMAIN_SIZE), suite)
        ids, best = ChunkIds(keys, len(chunk)), float("inf")
        for _ in range(10):
            start = time.perf_counter()
            ids.of(chunk)
            best = min(best, time.perf_counter() - start)
        return best

    return min(SUITES, key=seconds)


def print_recovery(recovery: bytes) -> None:
    """Show a recovery key, once."""
    print(
        "\nRecovery key. Write it down and keep it away from this machine; it opens the archive"
        " without the"
    )
    print(f"passphrase, and is not shown again:\n\n    {recovery_text(recovery)}\n")


def new_passphrase(path: Path | None) -> bytes:
    """A new passphrase, from a file or typed twice."""
    try:
        if path is not None:
            return slots.new_passphrase(read_secret(path))
        typed = ask_secret("Passphrase for the archive: ")
        if not typed or typed != ask_secret("The same again: "):
            raise UserError("the two passphrases differ or are empty; nothing was changed")
        return slots.new_passphrase(typed)
    except ValueError as error:
        raise UserError(f"{f'{path}: ' if path else ''}{error}") from None


def read_secret(path: Path) -> bytes:
    """A passphrase, the first line of a file."""
    with open(path, "rb") as file:
        passphrase = first_line(file.read(2 * slots.SECRET_LIMIT))  # /dev/zero has no end
    if not passphrase:
        raise UserError(f"{path}: the first line is empty; it must hold the passphrase")
    return passphrase


def ask_secret(question: str) -> bytes:
    """A passphrase typed on the terminal."""
    if not sys.stdin.isatty():
        raise UserError("no terminal to ask for the passphrase on; use --passphrase-file")
    from getpass import getpass

    try:
        return getpass(question).encode("utf-8", "surrogateescape")  # not always UTF-8
    except UnicodeDecodeError:
        raise UserError(
            "what was typed has letters that are none in this terminal's encoding; set LANG as the"
            " terminal is, or use --passphrase-file"
        ) from None


def _list(options: argparse.Namespace) -> int:
    found = list(Keyring(load(options.config).state_dir).readable())
    if options.json:
        fields = [
            {
                "label": archive.label,
                "id": archive.id.hex(),
                "caller": archive.caller,
                "mode": "open" if archive.mode == MODE_OPEN else "sealed",
                "hash": SUITES[archive.suite],
                "chunk_size": archive.chunk_size,
                "created": archive.created,
            }
            for archive in found
        ]
        print(json.dumps({"archives": fields}))
        return 0
    for archive in found:
        mode = "open" if archive.mode == MODE_OPEN else "sealed"
        made = session_name(archive.created)
        print(
            f"{archive.label:20} {mode:6} for {archive.caller:20} made {made}  {archive.id.hex()}"
        )
    return 0


def labelled(state_dir: Path, label: str) -> ArchiveKey:
    """The archive of that label; raise BadName, UserError."""
    archive = Keyring(state_dir).by_label(parse_name(label, "label"))
    if archive is None:
        raise UserError(f"no archive is labelled {label}; see: sparsebak-agent archive list")
    return archive


def _caller(options: argparse.Namespace) -> int:
    archive = labelled(load(options.config).state_dir, options.label)
    caller = parse_name(options.name, "caller")
    archives.set_caller(archive, caller)
    if not options.quiet:
        print(
            f"Archive {archive.label} is for {caller} now. There, if its settings do not name the"
            f" archive yet: sparsebak init DIR --label {archive.label} --repair --default"
        )
    return 0


def _remove(options: argparse.Namespace) -> int:
    state_dir = load(options.config).state_dir
    archive = labelled(state_dir, options.label)
    confirm(options, f"Forget {options.label} and its key?", word=options.label)
    drop_archive(state_dir, archive)
    archives.remove(archive)
    return 0

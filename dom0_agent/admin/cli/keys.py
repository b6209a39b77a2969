# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent keys``: passphrases and recovery key of an archive, and taking one over that
another dom0 made.

The master key is in dom0, so that no old passphrase is needed; changing a slot rewrites no data.
The archive's own copy of the slots is brought up to date in the backup VM by ``sparsebak keys
--refresh``.
"""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dom0_agent.admin.adoption import KeysFile, adopt, read, unlock
from dom0_agent.admin.archives import is_sound, set_slots
from dom0_agent.admin.cli import UserError, confirm, yes_option
from dom0_agent.admin.cli.archive import (
    ask_secret,
    labelled,
    new_passphrase,
    passphrase_option,
    print_recovery,
    read_secret,
)
from dom0_agent.config import load
from dom0_agent.keyring import ArchiveKey, Keyring
from wire.messages import MODE_OPEN
from wire.names import parse_name
from wire.slots import KIND_PASSPHRASE, KIND_RECOVERY, MAX_SLOTS, RECOVERY_BYTES, make_slot

_KINDS = {KIND_PASSPHRASE: "passphrase", KIND_RECOVERY: "recovery key"}


def add_to(commands: Any) -> None:
    """Declare the command."""
    keys = commands.add_parser(
        "keys",
        help="manage passphrases and recovery key; take over an archive from another dom0",
        description=(
            "Manages the passphrases and the recovery key of an archive, and takes over an archive"
            " from another dom0."
        ),
    )
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = _action(actions, "list", "show the key slots", "Shows the key slots: number and kind.")
    listed.set_defaults(run=_list)
    add = _action(
        actions, "add", "add a passphrase", "Adds a passphrase that opens the archive.", _passphrase
    )
    add.set_defaults(run=_add)
    changed = _action(
        actions,
        "change",
        "replace a passphrase",
        "Replaces a passphrase: the only one, or the one in the slot that --slot names.",
        _slot,
        _passphrase,
    )
    changed.set_defaults(run=_change)
    remove = _action(
        actions,
        "remove",
        "remove a key slot",
        "Removes a key slot, after asking: its passphrase or recovery key then opens nothing.",
        partial(_slot, required=True),
        yes_option,
    )
    remove.set_defaults(run=_remove)
    recovery = _action(
        actions,
        "new-recovery",
        "replace the recovery key, and show the new one",
        "Makes a new recovery key, after asking, and shows it. The old one then opens nothing.",
        yes_option,
    )
    recovery.set_defaults(run=_recovery)
    _add_old(actions)
    _add_import(actions)


def _add_old(actions: Any) -> None:
    # The old name. Without help it is not listed among the actions.
    old = actions.add_parser("show-recovery", description="The old name of: keys new-recovery")
    old.add_argument("label", metavar="LABEL", help="the archive's label")
    old.set_defaults(run=_show_recovery)


_passphrase = partial(passphrase_option, what="the new passphrase")


def _action(
    actions: Any,
    name: str,
    text: str,
    sentences: str,
    *options: Callable[[argparse.ArgumentParser], None],
) -> argparse.ArgumentParser:
    """Declare an action on an archive, with its options in their order."""
    action: argparse.ArgumentParser = actions.add_parser(name, help=text, description=sentences)
    action.add_argument("label", metavar="LABEL", help="the archive's label")
    for declare in options:
        declare(action)
    return action


def _slot(action: argparse.ArgumentParser, required: bool = False) -> None:
    action.add_argument(
        "--slot",
        type=int,
        required=required,
        metavar="N",
        help="the slot's number, as shown by: keys list",
    )


def _add_import(actions: Any) -> None:
    take = actions.add_parser(
        "import",
        help="take over an archive, from a file that 'sparsebak keys' wrote in the backup VM",
        description=(
            "Takes over an archive of another dom0, with its passphrase or its recovery key. The"
            " backup VM writes the file that this needs, by: sparsebak keys -o FILE"
        ),
    )
    take.add_argument("label", metavar="LABEL", help="a name for the archive")
    take.add_argument("file", type=Path, metavar="FILE", help="what 'sparsebak keys' wrote")
    take.add_argument(
        "--caller", required=True, metavar="NAME", help="the backup VM that may use the archive"
    )
    passphrase_option(take, "passphrase or recovery key")
    take.add_argument(
        "--open",
        action="store_true",
        help="the archive was made with --open; without this, one that says so is refused",
    )
    take.set_defaults(run=_import)


def _sealed(options: argparse.Namespace) -> ArchiveKey:
    archive = labelled(load(options.config).state_dir, options.label)
    if archive.mode == MODE_OPEN:
        raise UserError(
            f"{options.label} is open: its key has been readable in the archive, and sealing it"
            " now would not make it secret again; make a new archive without --open"
        )
    return archive


def _list(options: argparse.Namespace) -> int:
    kinds = [_KINDS.get(slot[0], "unknown") for slot in _sealed(options).slots]
    if options.json:
        print(
            json.dumps(
                {"slots": [{"slot": number, "kind": kind} for number, kind in enumerate(kinds)]}
            )
        )
        return 0
    for number, kind in enumerate(kinds):
        print(f"{number}: {kind}")
    return 0


def _keep(options: argparse.Namespace, archive: ArchiveKey, slots: list[bytes]) -> int:
    if len(slots) > MAX_SLOTS:
        raise UserError(f"an archive has at most {MAX_SLOTS} key slots; remove one first")
    set_slots(archive, tuple(slots))
    print(
        f"Key slots of {options.label}: {len(slots)}. In {archive.caller}, run: sparsebak keys"
        " --refresh"
    )
    return 0


def _new(options: argparse.Namespace, archive: ArchiveKey) -> bytes:
    return make_slot(
        KIND_PASSPHRASE, new_passphrase(options.passphrase_file), archive.master(), archive.id
    )


def _add(options: argparse.Namespace) -> int:
    archive = _sealed(options)
    return _keep(options, archive, [*archive.slots, _new(options, archive)])


def _change(options: argparse.Namespace) -> int:
    archive = _sealed(options)
    passphrases = [
        number for number, slot in enumerate(archive.slots) if slot[0] == KIND_PASSPHRASE
    ]
    if options.slot is None and len(passphrases) > 1:
        raise UserError(
            f"{options.label} has {len(passphrases)} passphrases; say which with --slot N, see:"
            f" sparsebak-agent keys list {options.label}"
        )
    number = options.slot if options.slot is not None else next(iter(passphrases), -1)
    if number not in passphrases:
        raise UserError(
            f"slot {number} of {options.label} is no passphrase; see: sparsebak-agent keys list"
            f" {options.label}"
        )
    slots = list(archive.slots)
    slots[number] = _new(options, archive)
    return _keep(options, archive, slots)


def _remove(options: argparse.Namespace) -> int:
    archive = _sealed(options)
    if not 0 <= options.slot < len(archive.slots):
        raise UserError(
            f"{options.label} has no slot {options.slot}; see: sparsebak-agent keys list"
            f" {options.label}"
        )
    if len(archive.slots) == 1:
        raise UserError(
            "this is the last slot; without it nobody could open the archive if this machine were"
            " lost"
        )
    kind = _KINDS.get(archive.slots[options.slot][0], "unknown slot")
    confirm(options, f"Remove slot {options.slot} ({kind}) of {options.label}?")
    return _keep(
        options,
        archive,
        [slot for number, slot in enumerate(archive.slots) if number != options.slot],
    )


def _recovery(options: argparse.Namespace) -> int:
    archive = _sealed(options)
    confirm(
        options,
        f"Replace the recovery key of {options.label}? The old one then opens nothing.",
    )
    secret = os.urandom(RECOVERY_BYTES)
    slot = make_slot(KIND_RECOVERY, secret, archive.master(), archive.id)
    _keep(options, archive, [*(one for one in archive.slots if one[0] != KIND_RECOVERY), slot])
    print_recovery(secret)
    return 0


def _show_recovery(options: argparse.Namespace) -> int:
    raise UserError(
        "a recovery key is not kept, so that it cannot be shown; for another one in its place: "
        f"sparsebak-agent keys new-recovery {parse_name(options.label, 'label')}"
    )


def _import(options: argparse.Namespace) -> int:
    state_dir = load(options.config).state_dir
    label, caller = parse_name(options.label, "label"), parse_name(options.caller, "caller")
    file = read(options.file)
    _require_new(Keyring(state_dir), label, file)
    _require_mode(options, file.untrusted_entry.mode)
    secret = b"" if options.open else _asked_secret(options.passphrase_file)
    archive, volumes = adopt(state_dir, file, label, caller, unlock(file, secret))
    print(f"Archive {label} ({archive.id.hex()}) is known here now, with {len(volumes)} volumes:")
    for name in sorted(volumes):
        print(f"    {name}")
    if archive.slots:
        words = ", ".join(_KINDS.get(slot[0], "unknown") for slot in archive.slots)
        print(f"Key slots: {words}. Any that you removed since that file's time, or do not know:")
        print(f"    sparsebak-agent keys remove {label} --slot N")
    print(f"In {caller}: sparsebak restore QUBE")
    return 0


def _require_new(keyring: Keyring, label: str, file: KeysFile) -> None:
    """Raise UserError for an archive that is known here, or a label that another one has."""
    entry = file.untrusted_entry
    known = keyring.find(entry.archive)
    if known is not None and is_sound(known.directory):
        raise UserError(_compared(known, file.untrusted_slots))
    same = keyring.by_label(label)
    if same is not None and same.id != entry.archive:
        raise UserError(f"there is an archive labelled {label} already; choose another label")


def _require_mode(options: argparse.Namespace, untrusted_mode: int) -> None:
    """Raise UserError unless --open and the file say the same of the archive: a file must not make
    an open one of it.
    """
    if options.open and untrusted_mode != MODE_OPEN:
        raise UserError(f"{options.file} says that the archive is sealed; leave --open out")
    if not options.open and untrusted_mode == MODE_OPEN:
        raise UserError(
            f"{options.file} says that the archive is open; if it was made with --open, say so"
            " here, too; if not, somebody has replaced it"
        )
    if options.open and options.passphrase_file:
        raise UserError("an open archive takes no passphrase; leave --passphrase-file out")


def _asked_secret(path: Path | None) -> bytes:
    return read_secret(path) if path else ask_secret("Passphrase or recovery key: ")


def _compared(known: ArchiveKey, untrusted_slots: tuple[bytes, ...]) -> str:
    """What a file says of an archive that is known: an old copy must not bring back what was
    removed.
    """
    more, less = (
        len(set(untrusted_slots) - set(known.slots)),
        len(set(known.slots) - set(untrusted_slots)),
    )
    differ = (
        f"; the file has {more} key slots that it has not (removed since?), and lacks {less}"
        if more or less
        else ""
    )
    return f"the archive is known here already, as {known.label}{differ}; nothing was changed"

# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent settings collect|show|apply``: take settings down for backups; look at restored
ones, then apply them, the safe ones and those named. The command of package
sparsebak-dom0-settings.
"""

import argparse
import difflib
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from tarfile import TarInfo
from typing import Any

from common.durable import closing_fd, pwrite_all, sync_directory
from common.text import printable
from dom0_agent.admin.catalog import write_down
from dom0_agent.admin.cli import UserError, confirm, yes_option
from dom0_agent.admin.renaming import change, expected
from dom0_agent.admin.settings import apply as restored
from dom0_agent.admin.settings import extended, restored_config
from dom0_agent.admin.settings.collecting import collect_all
from dom0_agent.admin.settings.document import QubeSettings
from dom0_agent.admin.settings.plan import GROUPS, Step, plan
from dom0_agent.catalog import CONFIG
from dom0_agent.config import Config
from dom0_agent.config import load as load_config
from dom0_agent.qubesd import asking
from dom0_agent.targets.dropbox import waiting
from wire.names import parse_name


def add_to(commands: Any) -> None:
    """Declare the command."""
    settings = commands.add_parser(
        "settings",
        help="save settings of qubes and of dom0 for backups; show and apply restored ones",
        description=(
            "Saves settings of qubes and dom0's own configuration, so that backups include them."
            " Shows and applies those that a restore brought to dom0."
        ),
    )
    actions = settings.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_collect(actions)
    _add_show(actions)
    _add_apply(actions)
    _add_extract(actions)


def _add_collect(actions: Any) -> None:
    collect = actions.add_parser(
        "collect",
        help="save the settings of every qube, and dom0's configuration, for the next backup",
        description=(
            "Saves the settings of every qube that is backed up, and dom0's own configuration, as"
            " they are now. The next backup includes them. A timer does this every hour."
        ),
    )
    collect.add_argument(
        "--due",
        action="store_true",
        help="skip dom0's configuration if it was saved in the last six hours",
    )
    collect.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    collect.set_defaults(run=_collect)


def _add_show(actions: Any) -> None:
    show = actions.add_parser(
        "show",
        help="show what applying them would change (for dom0: which files differ)",
        description=(
            "Shows what applying the restored settings of a qube would change, or which files of"
            " dom0 differ."
        ),
    )
    show.add_argument("qube", metavar="QUBE", help="the qube, or dom0")
    show.set_defaults(run=_run, apply=False, also=[], paths=[], yes=False)


def _add_apply(actions: Any) -> None:
    apply = actions.add_parser(
        "apply",
        help="show the changes, ask, and apply those that are safe by themselves",
        description=(
            "Shows the changes, asks, and applies those that give a qube no more than a new one"
            " has. Other groups are applied only when --also names them. A qube that does not exist"
            " is created."
        ),
    )
    apply.add_argument("qube", metavar="QUBE", help="the qube, or dom0")
    apply.add_argument("paths", nargs="*", metavar="FILE", help="with dom0: the files to put back")
    apply.add_argument(
        "--also",
        action="append",
        default=[],
        choices=GROUPS,
        help="apply this group, too; can be repeated",
    )
    yes_option(apply)
    apply.set_defaults(run=_run, apply=True)


def _add_extract(actions: Any) -> None:
    extract = actions.add_parser(
        "extract",
        help="write what describes the machine: packages, partition tables, LUKS headers",
        description=(
            "Writes what a restored dom0/config says of the machine that it was saved on, as files"
            " in a new folder that only root can read. It changes nothing else."
        ),
    )
    extract.add_argument("folder", metavar="DIR", type=Path, help="the folder to make")
    extract.set_defaults(run=_extract)


def _collect(options: argparse.Namespace) -> int:
    config, count, changed, failed = load_config(options.config), 0, 0, 0
    if config.catalog != "qubes":
        raise UserError("there are settings on Qubes OS only (catalog 'qubes')")
    for taken in collect_all(config, options.due):
        count, changed, failed = count + 1, changed + taken.changed, failed + bool(taken.error)
        if taken.error:
            print(f"sparsebak-agent: {taken.name}: {printable(taken.error)}", file=sys.stderr)
    write_down(config)
    if not options.quiet:
        print(f"{count - failed} of {count} saved, {changed} changed since the last time.")
    return 1 if failed else 0


def _run(options: argparse.Namespace) -> int:
    config, qube = load_config(options.config), parse_name(options.qube, "qube")
    if qube == "dom0":
        return _dom0(options, _restored_config(config))
    with asking():
        app, settings, older = restored.load(config.state_dir, qube)
        if qube not in app.domains:
            return _make(options, config, settings, older)
        steps = plan(app, app.domains[qube], settings, fresh=False)
    if not steps:
        print(f"{qube} has these settings already.")
        return 0
    for step in steps:
        print(_words(step, step.group in options.also))
    due = [step for step in steps if not step.group or step.group in options.also]
    if not options.apply or not due:
        return 0
    confirm(options, f"Apply {len(due)} of these to {qube}?")
    failures = 0
    for step, error in restored.apply(steps, frozenset(options.also)):
        if error is not None:
            failures += 1
            print(
                f"sparsebak-agent: {qube}: {step.what} could not be set: {printable(error)}",
                file=sys.stderr,
            )
    print(f"{len(due) - failures} of {len(due)} applied.")
    return 1 if failures else 0


def _make(options: argparse.Namespace, config: Config, settings: QubeSettings, older: bool) -> int:
    """A qube that is gone: say what it would be, ask, and make it."""
    qube, fields = options.qube, (settings.klass, settings.label, settings.template, settings.netvm)
    words = zip(("class", "label", "template", "netvm"), fields, strict=True)
    print(f"{qube} does not exist. It would be created with")
    for what, value in words:
        print(printable(f"  {what}: {value or '-'}"))
    if older:
        print("without network, for these settings are not the newest that dom0 knows.")
    if not options.apply:
        return 0
    confirm(options, f"Create {qube}?")
    # What is made here is to have the history of the one that is gone, whatever its UUID.
    change(config.state_dir, lambda known: expected(known, qube))
    failures = restored.create(qube, settings, older)
    write_down(config)
    print(f"Created {qube}. What else there is to apply: sparsebak-agent settings show {qube}")
    return 1 if failures else 0


def _words(step: Step, named: bool) -> str:
    only = f"   (only with --also {step.group})" if step.group and not named else ""
    return printable(f"  {step.what}: {step.old or '-'} -> {step.new or '-'}") + only


def _restored_config(config: Config) -> Path:
    """The tar archive of dom0's configuration that was restored last; raise UserError."""
    found = waiting(config.state_dir, *CONFIG)
    if found is None:
        raise UserError(
            "no configuration of dom0 was restored; in the backup VM: sparsebak restore dom0/config"
        )
    return found[0]


def _dom0(options: argparse.Namespace, archive: Path) -> int:
    if not options.paths:
        differing = dict.fromkeys(
            name for name, _, new in restored_config.files(archive) if _current(name) != new
        )
        for name in differing:
            print(printable(f"  {name}: {'differs' if os.path.lexists(name) else 'is not here'}"))
        if not differing:
            print("dom0 has these files already.")
        for line in restored_config.left_out(archive):
            print(printable(f"  not in the backup: {line}"))
        if differing and options.apply:
            raise UserError("name the files to put back; none is by itself")
        return 0
    files = {
        name: (member, new)
        for name, member, new in restored_config.files(archive)
        if name in options.paths
    }
    if unknown := [name for name in options.paths if name not in files]:
        raise UserError(
            f"{unknown[0]} is not among what was restored; see: sparsebak-agent settings show dom0"
        )
    for name in options.paths:
        _show_difference(name, files[name][1])
    confirm(options, f"Write {len(options.paths)} files?")
    for name in options.paths:
        member, new = files[name]
        _put_back(Path(name), member, new)
    print(f"{len(options.paths)} files written.")
    return 0


def _extract(options: argparse.Namespace) -> int:
    archive = _restored_config(load_config(options.config))
    folder, count = options.folder, 0
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise UserError(f"{folder} exists; name a folder that does not") from None
    try:
        for name, contents in restored_config.machine(archive):
            (folder / name).parent.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with closing_fd(fd):
                pwrite_all(fd, contents, 0)
            count += 1
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # or it would be in the way of the next try
        raise
    if not count:
        folder.rmdir()
        raise UserError(
            "the restored dom0/config says nothing of the machine; see machine in agent.toml"
        )
    print(f"{count} files written to {printable(str(folder))}.")
    return 0


def _put_back(path: Path, member: TarInfo, contents: bytes) -> None:
    """Replace a file, with its owner, mode and extended attributes. What is written beside it first
    has a name that nothing else has.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, beside = tempfile.mkstemp(prefix=f".{path.name[:99]}.", dir=path.parent)
    try:
        with closing_fd(fd):
            pwrite_all(fd, contents, 0)
            os.fchown(fd, member.uid, member.gid)
            os.fchmod(fd, member.mode & 0o777)
            # After its owner, which takes capabilities away.
            extended.put_back(fd, member.pax_headers)
            os.fsync(fd)
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise
    sync_directory(path.parent)


def _current(name: str) -> bytes | None:
    try:
        return Path(name).read_bytes()
    except OSError:
        return None


def _show_difference(name: str, new: bytes) -> None:
    old = (_current(name) or b"").decode("utf-8", "replace").splitlines()
    for line in difflib.unified_diff(
        old, new.decode("utf-8", "replace").splitlines(), f"{name} (now)", name, lineterm=""
    ):
        print(printable(line))

"""``sparsebak-agent settings show|apply QUBE``: look at restored settings, then apply them, the
safe ones and those named.
"""

import argparse
import difflib
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from tarfile import TarInfo
from typing import Any

from common.durable import closing_fd, pwrite_all, sync_directory
from common.text import printable
from dom0_agent.admin.cli import UserError, confirm, yes_option
from dom0_agent.admin.settings import config_tar, restored
from dom0_agent.admin.settings.plan import GROUPS, Step, plan
from dom0_agent.config import load as load_config
from dom0_agent.qubesd import asking
from wire.names import parse_name


def add_to(commands: Any) -> None:
    """Declare the command."""
    settings = commands.add_parser(
        "settings",
        help="show and apply restored settings of a qube or of dom0",
        description=(
            "Shows and applies settings that a restore brought to dom0: those of a qube, or dom0's"
            " own configuration."
        ),
    )
    actions = settings.add_subparsers(dest="action", required=True, metavar="ACTION")
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
    apply = actions.add_parser(
        "apply",
        help="show the changes, ask, and apply those that are safe by themselves",
        description=(
            "Shows the changes, asks, and applies those that give a qube no more than a new one"
            " has. Other groups are applied only when --also names them."
        ),
    )
    apply.add_argument("qube", metavar="QUBE", help="the qube, or dom0")
    apply.add_argument("paths", nargs="*", metavar="FILE", help="with dom0: the files to put back")
    apply.add_argument(
        "--also",
        action="append",
        default=[],
        choices=GROUPS,
        help="apply this group, too; may be given again",
    )
    yes_option(apply)
    apply.set_defaults(run=_run, apply=True)


def _run(options: argparse.Namespace) -> int:
    state_dir, qube = load_config(options.config).state_dir, parse_name(options.qube, "qube")
    if qube == "dom0":
        return _dom0(options, restored.place(state_dir, "dom0", "config"))
    with asking():
        app, settings = restored.load(state_dir, qube)
        if qube not in app.domains:
            raise UserError(
                f"{qube} does not exist; create it again with: sparsebak restore {qube}/settings"
            )
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


def _words(step: Step, named: bool) -> str:
    only = f"   (only with --also {step.group})" if step.group and not named else ""
    return printable(f"  {step.what}: {step.old or '-'} -> {step.new or '-'}") + only


def _dom0(options: argparse.Namespace, archive: Path) -> int:
    if not archive.is_file():
        raise UserError(
            "no configuration of dom0 was restored; in the backup qube: sparsebak restore"
            " dom0/config"
        )
    if not options.paths:
        differing = dict.fromkeys(
            name for name, _, new in config_tar.files(archive) if _current(name) != new
        )
        for name in differing:
            print(printable(f"  {name}: {'differs' if os.path.lexists(name) else 'is not here'}"))
        if not differing:
            print("dom0 has these files already.")
        for line in config_tar.left_out(archive):
            print(printable(f"  not in the backup: {line}"))
        if differing and options.apply:
            raise UserError("name the files to put back; none is by itself")
        return 0
    files = {
        name: (member, new)
        for name, member, new in config_tar.files(archive)
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


def _put_back(path: Path, member: TarInfo, contents: bytes) -> None:
    """Replace a file, with its owner and mode. What is written beside it first has a name that
    nothing else has.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, beside = tempfile.mkstemp(prefix=f".{path.name[:99]}.", dir=path.parent)
    try:
        with closing_fd(fd):
            pwrite_all(fd, contents, 0)
            os.fchown(fd, member.uid, member.gid)
            os.fchmod(fd, member.mode & 0o777)
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

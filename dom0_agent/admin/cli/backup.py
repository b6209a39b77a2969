# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent backup``: start the backup VM if it is off, let it back everything up, and shut
it down again, when nothing else of sparsebak runs there.
"""

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.durable import Busy, lock, make_directory
from common.text import parse_seconds, printable, reason
from dom0_agent.admin import last_backup
from dom0_agent.admin.catalog import current
from dom0_agent.admin.cli import UserError, user_option
from dom0_agent.admin.tags import VM_TAG, tag_new, tagged
from dom0_agent.config import ConfigError, load
from dom0_agent.log import INFO, WARNING, log
from dom0_agent.notify import notify
from dom0_agent.qubesd import asking, connect
from wire.names import parse_name
from wire.status import Refused

SERVICE = "qubes.VMExec+sparsebak+backup+----all+--q"
"""``sparsebak backup --all -q``, as VMExec wants it: parts by ``+``, each dash doubled."""
WAITING = "+----lock--wait+"
"""``--lock-wait``, which a number of seconds follows."""
IN_USE = 11
"""What sparsebak there ends with when another run has the archive, such as the nightly check, or is
at work there.
"""
QUIET = "qubes.VMExec+sparsebak+wait+--q+----for+"
"""``sparsebak wait -q --for 60``, without the number of seconds, which follows."""
LOCK_WAIT = 12 * 3600
"""Seconds that such a run is waited for: a check of a large archive takes hours."""
NOT_NOW = 13
"""What sparsebak there ends with when its settings have it wait for mains or another link. Whoever
has taken over the backup VM can say so every night: ``check`` reports what is late all the same.
"""
_SHUTDOWN = 120.0
"""Seconds to wait for the backup VM to shut down; it then stays as it is."""
_STARTED, _RAN = 10**9, 2 * 10**9
"""The time of the file of a backup VM that is used just now: whether it was off before. A time
takes no room on a disk that is full.
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    backup = commands.add_parser(
        "backup",
        help="on Qubes OS: have the backup VM make a backup, starting it if it is off",
        description=(
            "On Qubes OS: has the backup VM make a backup. If the backup VM is off, it is started"
            " first and shut down afterwards, when nothing else of sparsebak runs there any more."
            " Another run there that has the archive, such as the nightly check, is waited for."
            " Exit code 13 means that the backup VM has put the backup off: it is on battery or on"
            " a metered link."
        ),
    )
    backup.add_argument(
        "--vm", metavar="NAME", help="the backup VM (default: the one tagged by setup)"
    )
    user_option(backup, "the user that runs the backup there")
    backup.add_argument(
        "--lock-wait",
        type=_seconds,
        default=LOCK_WAIT,
        metavar="SECONDS",
        help="how long to wait there for another run that has the archive, and before the shutdown"
        " for any (default: %(default)s)",
    )
    backup.set_defaults(run=_run)


def _seconds(text: str) -> int:
    try:
        return parse_seconds(text)  # digits alone: it becomes a part of what qrexec is asked for
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _run(options: argparse.Namespace) -> int:
    ended = False
    try:
        config = load(options.config)
        catalog, listed = current(config)
        tag_new(config)
        with asking():
            app = connect()
            app.cache_enabled = False  # states change while we wait
            domain = _backup_vm(app, options.vm)
            with _running(domain, config.state_dir / "backups", options):
                code = _backup(domain, options)
                ended = True
                # before the end of what else runs there is waited for
                result = _tell(domain, code, options)
                last_backup.note(config, catalog)
    except (ConfigError, OSError, Refused, UserError) as error:  # every night, and nobody looks
        if not ended:  # what becomes of that is told; a terminal that was closed says nothing of it
            notify("Backup failed", f"It was not made: {printable(reason(error))}", urgent=True)
        raise
    return result or int(not listed)  # a qube made since the last list was not in it; the log says


def _tell(domain: Any, code: int, options: argparse.Namespace) -> int:
    """Say what became of the backup, given sparsebak's exit code; ours."""
    if code == NOT_NOW:
        why = f"{domain.name} waits for mains or for a link that is not metered"
        notify("Backup put off", f"{why}; the next run tries again.")
        print(f"sparsebak-agent: the backup was put off: {why}", file=sys.stderr)
        return NOT_NOW
    if code == IN_USE:
        why = f"another run in {domain.name} still has the archive; there: sparsebak status"
        notify("Backup failed", f"It was not made: {why}", urgent=True)
        print(f"sparsebak-agent: the backup was not made: {why}", file=sys.stderr)
        return 1
    if code:
        notify(
            "Backup failed",
            f"sparsebak in {domain.name} ended with code {code}; see its journal.",
            urgent=True,
        )
        print(
            f"sparsebak-agent: the backup in {domain.name} ended with code {code}", file=sys.stderr
        )
        return 1
    if not options.quiet:
        print(f"{domain.name} has made a backup.", flush=True)
    return 0


def _backup_vm(app: Any, name: str | None) -> Any:
    if name is not None:
        if parse_name(name, "qube") not in app.domains:
            raise UserError(f"there is no qube {name}")
        return app.domains[name]
    found = tagged(app.domains, VM_TAG)
    if not found:
        raise UserError("no backup VM is set up; run: sparsebak-agent setup BACKUP-VM")
    if len(found) > 1:  # Qubes gives a clone, and a disposable, the tags of what it is made from
        names = " and ".join(sorted(str(domain.name) for domain in found))
        raise UserError(
            f"{names} are all tagged as the backup VM; for the one that is it, run:"
            " sparsebak-agent setup BACKUP-VM"
        )
    return found[0]


@contextmanager
def _running(domain: Any, folder: Path, options: argparse.Namespace) -> Iterator[None]:
    """The backup VM runs inside. If it was off it is shut down in the end: by the last of several
    that use it, for another may wait there for this one's backup to end.
    """
    fd, patience = _joined(folder, str(domain.name)), 0
    try:
        alone = fd >= 0 and _is_alone(fd)
        if fd >= 0 and not alone:
            fcntl.flock(fd, fcntl.LOCK_SH)  # while it is shut down nobody else begins
        was_off = domain.is_halted()
        if alone or (fd >= 0 and was_off):
            os.utime(fd, ns=(0, _STARTED if was_off else _RAN))
            fcntl.flock(fd, fcntl.LOCK_SH)
        if was_off:
            domain.start()
        try:
            yield
            patience = options.lock_wait  # none where this was interrupted
        finally:
            if fd >= 0:
                was_off = _is_alone(fd) and os.fstat(fd).st_mtime_ns == _STARTED
            if was_off:
                _let_go(domain, fd, patience, options)
    finally:
        if fd >= 0:
            os.close(fd)


def _joined(folder: Path, vm: str) -> int:
    """A file that is locked, shared, by all that use the backup VM just now; -1 where there can be
    none, which keeps nobody from a backup.
    """
    try:
        make_directory(folder)
        return lock(folder / vm, shared=True, patience=_SHUTDOWN + 10)
    except (Busy, OSError) as error:
        log(WARNING, f"{folder / vm} cannot be locked: {error}")
        return -1


def _is_alone(fd: int) -> bool:
    """Whether nobody else uses the backup VM: then nobody begins to, until the lock is shared again
    or given back. Otherwise it is not held any more (flock(2)).
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _backup(domain: Any, options: argparse.Namespace) -> int:
    """Exit code of sparsebak there, after waiting for another run that has the archive."""
    code = _asked_for(domain, options.user, SERVICE)
    if code == IN_USE and options.lock_wait:
        # Only now, so that it can be said here: of what sparsebak there prints nothing is read.
        said = f"another run in {domain.name} has the archive; the backup waits for it to end"
        log(INFO, said)
        if not options.quiet:
            print(f"{said}, {options.lock_wait / 3600:.3g} hours at most.", flush=True)
        code = _asked_for(domain, options.user, f"{SERVICE}{WAITING}{options.lock_wait}")
    return code


def _asked_for(domain: Any, user: str, service: str) -> int:
    """Exit code of sparsebak there. Nothing it prints is read: it may be hostile."""
    from subprocess import DEVNULL

    process = domain.run_service(
        service,
        user=user,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
    )
    return int(process.wait())


def _let_go(domain: Any, fd: int, patience: int, options: argparse.Namespace) -> None:
    """Shut the backup VM down, unless something else of sparsebak runs there and does not end in so
    many seconds: a restore that somebody began by hand, or what another qube reads.
    """
    try:
        with asking():
            if not domain.is_halted() and _is_quiet(domain, fd, patience, options):
                _shut_down(domain)
    except Refused as refused:  # what became of the backup is said all the same
        log(WARNING, f"{domain.name} stays as it is: {refused}")


def _is_quiet(domain: Any, fd: int, patience: int, options: argparse.Namespace) -> bool:
    """Whether the backup VM can be shut down, and nobody else does that, or has."""
    code = _asked_for(domain, options.user, f"{QUIET}0")
    if code == IN_USE and patience:
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_SH)  # whoever wants a backup need not wait
        hours = f"{patience / 3600:.3g} hours at most"
        log(INFO, f"{domain.name} stays on until what else of sparsebak runs there ends, {hours}")
        if not options.quiet:
            print(f"It stays on until what else runs there ends, {hours}.", flush=True)
        code = _asked_for(domain, options.user, f"{QUIET}{patience}")
        if domain.is_halted() or (fd >= 0 and not _is_alone(fd)):
            return False
    if code == IN_USE:
        log(WARNING, f"{domain.name} stays on: something else of sparsebak runs there")
    return code != IN_USE


def _shut_down(domain: Any) -> None:
    domain.shutdown()
    deadline = time.monotonic() + _SHUTDOWN
    while not domain.is_halted() and time.monotonic() < deadline:
        time.sleep(1)

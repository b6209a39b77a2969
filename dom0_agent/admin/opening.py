# SPDX-License-Identifier: GPL-2.0-or-later
"""Showing sessions in a disposable: it is made without network, is tagged so that it may read
sealed chunks from the backup VM, and is handed a grant by its service ``sparsebak.Open``.

Of what the disposable sends a status is read, and nothing else: it is trusted with no more than the
grant.
"""

import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, TimeoutExpired
from typing import IO, Any

from dom0_agent.admin import unfinished
from dom0_agent.admin.tags import READER_TAG
from dom0_agent.log import INFO, log
from dom0_agent.qubesd import asking, connect
from wire.grants import Grant
from wire.messages import HEADER, HEADER_SIZE, KIND_STATUS, Status
from wire.names import parse_name
from wire.status import Code, Refused
from wire.stream import CutShort, read_exactly

SERVICE = "sparsebak.Open"
FILE_MANAGER = "qubes.VMExecGUI+xdg--open+-2Fmnt-2Fsparsebak"
"""``xdg-open /mnt/sparsebak``, where the service mounts, as VMExec wants it: ``-2F`` is a slash and
each dash doubled. It waits for the user's session.
"""
PATIENCE = 300.0
"""Seconds that the disposable has to mount the sessions."""
_NO_SUCH_SERVICE = 127
_MEANINGS = {
    Code.DENIED: "dom0's policy refuses that {vm} is read; see sparsebak.Read in"
    " /etc/qubes/policy.d",
    Code.NO_ARCHIVE: "{vm} has no archive there; is its disk attached?",
    Code.NO_SESSION: "the archive of {vm} has the session no longer",
    Code.BUSY: "the archive of {vm} is in use by another run; try again when it has ended",
    Code.DAMAGED: "what the archive of {vm} has is damaged; there: sparsebak verify",
    Code.SOURCE_FAILED: "no file system in it could be mounted; in {vm}: sparsebak files ls",
    Code.NOT_INSTALLED: "the template of {template} lacks fuse3 or the Python module mfusepy;"
    " install them there",
    Code.BAD_REQUEST: "the template of {template} has another version of sparsebak-vm; upgrade it",
}


@dataclass(frozen=True)
class Place:
    """Where sessions are to be shown: the template of the disposable, and the backup VM that it
    reads from.
    """

    app: Any
    template: str
    vm: str


def find(vm: str, template: str | None) -> Place:
    """The place, of that disposable template or the default one, while the backup VM runs; raise
    Refused.
    """
    with asking():
        app = connect()
        app.cache_enabled = False  # states change while we wait
        if template is None:
            template = app.default_dispvm and str(app.default_dispvm)
            if not template:
                raise Refused(
                    Code.INTERNAL,
                    "there is no default disposable template; name one with --template, or set it:"
                    " qubes-prefs default_dispvm NAME",
                )
        if parse_name(template, "qube") not in app.domains:
            raise Refused(Code.INTERNAL, f"there is no qube {template}")
        if vm not in app.domains:
            raise Refused(Code.INTERNAL, f"there is no qube {vm}, which is to have the archive")
        if not app.domains[vm].is_running():
            raise Refused(
                Code.INTERNAL,
                f"the backup VM {vm} is not running; start it, and attach the archive's disk",
            )
    return Place(app, template, vm)


def show(place: Place, grant: Grant, state_dir: Path) -> str:
    """Show what the grant is for, in the file manager of a new disposable, and return its name.
    Raise Refused; whatever ends this early, the disposable is gone then, or, where this process is
    killed, at the next ``monitor``.
    """
    with asking():
        raw = place.app.qubesd_call(place.template, "admin.vm.CreateDisposable")
    name = parse_name(raw.decode("ascii", "replace"), "qube")
    # A process that is killed before this leaves one without grant and tag, which nobody can tell
    # from another.
    with unfinished.making(state_dir, place.app, name), asking():
        disposable = place.app.domains[name]
        # With 4.3 it may run already (preloaded), with a network, which it loses here.
        disposable.netvm = None
        # else what is in it could have another one started, which has a network
        disposable.default_dispvm = None
        disposable.tags.add(READER_TAG)
        disposable.start()
        _hand_over(place, disposable, grant)
        _show_files(disposable)
    log(INFO, f"{name} was made, of {place.template}, and shows {grant.records[0].name}")
    return name


def _hand_over(place: Place, disposable: Any, grant: Grant) -> None:
    """Have the sessions mounted there. The grant goes through a pipe: no file or command line has
    it.
    """
    with asking():
        process = disposable.run_service(
            f"{SERVICE}+{place.vm}", user="root", stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
    # It may take nothing, or never end what it sends.
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        with suppress(BrokenPipeError):  # then it says why, or the exit code does
            process.stdin.write(grant.build())
            process.stdin.flush()
        with suppress(BrokenPipeError):
            process.stdin.close()
        untrusted_status = _status(process.stdout)
        if untrusted_status is None:
            process.stdout.close()
            code = process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    if untrusted_status is None:
        raise Refused(Code.INTERNAL, _no_status(place, code))
    if untrusted_status != Code.OK:
        meanings = {int(code): text for code, text in _MEANINGS.items()}
        meaning = meanings.get(untrusted_status, "the disposable could not do it")
        raise Refused(
            Code.INTERNAL,
            f"it was not opened: {meaning.format(vm=place.vm, template=place.template)}",
        )


def _status(stream: IO[bytes]) -> int | None:
    """The code of the one frame that the disposable sends, or None where it sent none."""
    try:
        if HEADER.unpack(read_exactly(stream, HEADER_SIZE)) == (KIND_STATUS, Status.length()):
            return Status.parse(read_exactly(stream, Status.length())).code
    except (CutShort, ValueError):
        pass
    return None


def _no_status(place: Place, code: int) -> str:
    if code == _NO_SUCH_SERVICE:
        return (
            f"the template of {place.template} has no sparsebak; install there: sparsebak-vm, fuse3"
            " and the Python module mfusepy"
        )
    return f"it was not opened: the disposable did not say how it went (exit code {code})"


def _show_files(disposable: Any) -> None:
    """Start the file manager. Whether its window comes cannot be known here."""
    with asking():
        process = disposable.run_service(
            FILE_MANAGER, wait=False, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
        )
    try:
        process.wait(PATIENCE)
    except TimeoutExpired:
        process.kill()
        process.wait()

"""The resident agent: everything is imported once, and each call is a forked process of its own, as it would be without it.

qrexec hands a call to a service that is a socket as a connection, which first says ``SERVICE+ARGUMENT SOURCE TYPE TARGET``
and a NUL byte (core-qrexec, ``libqrexec/exec.c``, "socket services"); then come the caller's bytes. Nothing that a call does
can stay behind in the parent: it accepts, forks, and reaps.
"""

import gc
import importlib
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dom0_agent.config import ConfigError, load
from dom0_agent.log import INFO, WARNING, log
from dom0_agent.service import SERVICES, PatientReader, PatientWriter, confine, run
from wire.stream import SEND_BUFFER

IDLE = 120.0
"""Seconds without a call after which the agent ends; its sockets stay with systemd, which starts it again."""
MOST = 64
"""Calls at the same time; more wait to be accepted."""
HEAD_PATIENCE = 10.0
"""Seconds that the beginning of a connection may take."""
_LONGEST_HEAD = 1024
_BACKLOG = 1024
_HEAD = re.compile(
    rb"sparsebak\.([A-Za-z]{1,16})(?:\+([A-Za-z0-9_.+-]{0,200}))? ([A-Za-z0-9_.-]{1,63}) (name|keyword) ([A-Za-z0-9_.-]{1,63})"
)
_FIRST_SYSTEMD_FD = 3  # sd_listen_fds(3)


def listening(folder: Path | None) -> list[socket.socket]:
    """The sockets that systemd holds for us, or new ones in a folder, one for each service, for its owner alone."""
    if folder is None:
        count = (
            int(os.environ.get("LISTEN_FDS", "0"))
            if os.environ.get("LISTEN_PID") == str(os.getpid())
            else 0
        )
        return [
            socket.socket(fileno=fd) for fd in range(_FIRST_SYSTEMD_FD, _FIRST_SYSTEMD_FD + count)
        ]
    folder.mkdir(mode=0o700, exist_ok=True)
    made = []
    for service in SERVICES:
        path = folder / f"sparsebak.{service}"
        with suppress(FileNotFoundError):
            path.unlink()
        one = socket.socket(socket.AF_UNIX)
        one.bind(str(path))
        one.listen(_BACKLOG)
        made.append(one)
    return made


def preload(config_path: Path) -> None:
    """Import whatever a call may need, so that no call has to."""
    for service in SERVICES:
        importlib.import_module(f"dom0_agent.services.{service.lower()}")
    ciphers = [
        f"cryptography.hazmat.primitives.{name}" for name in ("hashes", "ciphers.aead", "kdf.hkdf")
    ]
    modules = ["zstandard", *ciphers, "json", "concurrent.futures.thread"]
    with suppress(ConfigError):  # told of by the calls
        config = load(config_path)
        drivers = {volume.pool.driver for volume in config.volumes}
        modules.append(f"dom0_agent.catalog.{config.catalog}")
        if config.catalog == "qubes":
            modules += ["qubesadmin", "dom0_agent.importing", "dom0_agent.sources.settings"]
            drivers |= {"lvm_thin", "reflink", "file"}
        modules += [f"dom0_agent.sources.{driver}" for driver in drivers]
    for name in modules:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # a call that looked for garbage in all of this would copy it, page by page


def serve(sockets: list[socket.socket], config_path: Path, idle: float | None) -> None:
    """Accept calls until none has come for ``idle`` seconds and none is running; None: for ever.

    SIGTERM lets the calls that run come to their end, and accepts no more.
    """
    poll, children, last = select.poll(), set[int](), time.monotonic()
    by_fd = {one.fileno(): one for one in sockets}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    log(INFO, f"ready on {len(sockets)} sockets")
    while not stopping.is_set() or children:
        _reap(children)
        if len(children) >= MOST or stopping.is_set():
            time.sleep(0.01)
            continue
        for fd, _ in poll.poll(1000):
            with suppress(BlockingIOError, ConnectionAbortedError):
                connection, _ = by_fd[fd].accept()
                children.add(_fork(connection, sockets, config_path))
                last = time.monotonic()
        if children:
            last = time.monotonic()
        elif idle is not None and time.monotonic() - last >= idle:
            log(INFO, "no calls; going")
            return


def _reap(children: set[int]) -> None:
    while children:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            children.clear()
            return
        if pid == 0:
            return
        children.discard(pid)


def _fork(connection: socket.socket, sockets: Iterable[socket.socket], config_path: Path) -> int:
    pid = os.fork()
    if pid:
        connection.close()
        return pid
    code = 1
    try:
        for one in sockets:
            one.close()
        code = _call(connection, config_path)
    finally:
        os._exit(code)


def _call(connection: socket.socket, config_path: Path) -> int:
    """One call, in a process of its own."""
    confine()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    fd = connection.detach()
    reader = PatientReader(fd)
    found = read_head(fd)
    if found is None:
        log(WARNING, "a connection that does not begin as qrexec's do")
        return 1
    service, environ = found
    return run(service, environ, config_path, reader, PatientWriter(fd))


def read_head(fd: int) -> tuple[str, dict[str, str]] | None:
    """The service, and what its environment would say, from the beginning of a connection. qrexec sends it at once."""
    untrusted_head, deadline, poll = b"", time.monotonic() + HEAD_PATIENCE, select.poll()
    poll.register(fd, select.POLLIN)
    while not untrusted_head.endswith(b"\0"):
        if len(untrusted_head) >= _LONGEST_HEAD or not poll.poll(
            max(0, deadline - time.monotonic()) * 1000
        ):
            return None
        untrusted_byte = os.read(fd, 1)  # no more: what follows is the caller's
        if not untrusted_byte:
            return None
        untrusted_head += untrusted_byte
    head = _HEAD.fullmatch(untrusted_head[:-1])
    if head is None or head[1].decode("ascii") not in SERVICES:
        return None
    service, argument, source, kind, target = (
        part.decode("ascii") for part in (head[1], head[2] or b"", *head.groups()[2:])
    )
    environ = {
        "QREXEC_REMOTE_DOMAIN": source,
        "QREXEC_SERVICE_ARGUMENT": argument,
        "QREXEC_REQUESTED_TARGET_TYPE": kind,
    }
    return service, environ | {
        "QREXEC_REQUESTED_TARGET" + ("" if kind == "name" else "_KEYWORD"): target
    }

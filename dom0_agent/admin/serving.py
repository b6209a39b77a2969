# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting the resident agent: its sockets, and all that its calls will need, imported before the
first one.
"""

import gc
import importlib
import os
import resource
import socket
from contextlib import suppress
from pathlib import Path

from dom0_agent.config import DRIVERS, ConfigError, load
from dom0_agent.rpc.heads import SERVICES
from dom0_agent.rpc.resident import Resident
from wire import CHUNK_SIZES, DEDUP_DOMAIN_SIZE
from wire.chunks import KEY_SIZE, SUITE_SHA256, ChunkIds, Keys, seal_bytes

DESCRIPTORS = 4096
_BACKLOG = 1024
_FIRST_SYSTEMD_FD = 3  # sd_listen_fds(3)


def listening(folder: Path | None) -> list[socket.socket]:
    """The sockets that systemd holds for us, or new ones in a folder, one for each service, for its
    owner alone.
    """
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
    # Whoever connects may claim to be any caller, and the folder may have been there before,
    # open to others.
    os.umask(0o077)
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
        importlib.import_module(f"dom0_agent.rpc.services.{service.lower()}")
    ciphers = [
        f"cryptography.hazmat.primitives.{name}" for name in ("hashes", "ciphers.aead", "kdf.hkdf")
    ]
    modules = ["zstandard", *ciphers, "json", "concurrent.futures.thread"]
    with suppress(ConfigError):  # the calls report it
        config = load(config_path)
        drivers = {volume.pool.driver for volume in config.volumes}
        if config.catalog == "qubes":  # not qubesadmin: that is for a restore alone
            drivers |= DRIVERS.keys()
            modules.append("dom0_agent.catalog.kept")
        else:
            modules.append("dom0_agent.catalog.static")
        modules += [f"dom0_agent.{name}" for driver in drivers for name in DRIVERS[driver]]
    for name in modules:
        with suppress(ImportError):
            importlib.import_module(name)
    _use_openssl()
    gc.freeze()  # a call that looked for garbage in all of this would copy it, page by page


def _use_openssl() -> None:
    """Have OpenSSL do what it does at its first use in a process, or each call does it: it looks up
    its algorithms, which took a tenth of a call's processor time.
    """
    keys = Keys(bytes(KEY_SIZE)).of_domain(bytes(DEDUP_DOMAIN_SIZE), SUITE_SHA256)
    ChunkIds(keys, CHUNK_SIZES[0])
    seal_bytes(keys.sealing, b"", b"")


def serve(sockets: list[socket.socket], config_path: Path, idle: float | None) -> None:
    """Answer calls: see Resident.run."""
    _more_descriptors()
    Resident(sockets, config_path).run(idle)


def _more_descriptors() -> None:
    """Room for every connection that may be held; what a service may have by default (1,024) is not
    enough.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Saving settings for backups: a document for each qube that is backed up, and dom0's configuration
as a tar archive, in files that calls read like any other volume.

``<state_dir>/settings/<qube>.settings`` and ``dom0.config``. A file is replaced only when it
changed; its time says when it was last known to be right. What cannot be saved stays as it was, is
reported, and counts as failed once it is a day old (``dom0_agent.admin.qubes_catalog``).
"""

import filecmp
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.durable import (
    UNREADABLE,
    Busy,
    closing_fd,
    lock,
    make_directory,
    replace,
    sync_directory,
)
from common.existing import children, is_file
from dom0_agent.admin.qubes_catalog import QubesCatalog, document
from dom0_agent.admin.qubes_options import QubesOptions, qubes_options
from dom0_agent.admin.settings import config_tar, machine
from dom0_agent.admin.settings.document import collect
from dom0_agent.catalog import CONFIG, SETTINGS
from dom0_agent.config import Config, Pool, Volume
from dom0_agent.log import WARNING, log
from dom0_agent.sources.file import FileSource
from dom0_agent.targets.dropbox import CONFIG_LIMIT
from wire.status import Code, Refused

CONFIG_EVERY = 6 * 3600
"""Seconds between two looks at dom0's configuration by the timer: to read all of dom0's home costs
more than qubes' settings do, and something in it changes all the time."""
_TOLD = 20
"""Things left out that are named in the log; the archive lists them all."""


_END = 64 << 20
"""Bytes that the list of what is left out may have, generously."""


@dataclass(frozen=True)
class Taken:
    """What became of a document: whether it changed, or why it could not be saved."""

    name: str
    changed: bool = False
    error: str = ""


def collect_all(config: Config, due: bool = False) -> Iterator[Taken]:
    """Save everything that the configuration wants. ``due``: dom0's configuration only if it is
    time. Refused when qubesd does not answer at all, or somebody else is at it.
    """
    if config.catalog != "qubes":
        return
    folder = config.state_dir / SETTINGS
    make_directory(folder)
    try:
        fd = lock(folder / "lock")
    except Busy:
        raise Refused(Code.BUSY, "settings are being saved by another command; try again") from None
    with closing_fd(fd):
        yield from _collect_all(config, qubes_options(config), due)


def _collect_all(config: Config, options: QubesOptions, due: bool) -> Iterator[Taken]:
    wanted: dict[Path, tuple[str, Callable[[Path], bool] | None]] = {}
    catalog = QubesCatalog(config, options)
    if catalog.config_unwanted() is None:
        path = document(config.state_dir, *CONFIG)
        take = partial(_take_config, options.dom0_config, options=options)
        wanted[path] = "/".join(CONFIG), None if due and _age(path) < CONFIG_EVERY else take
    if options.settings:
        for qube in catalog.qubes():
            path = document(config.state_dir, qube, SETTINGS)
            wanted[path] = f"{qube}/{SETTINGS}", partial(_take_settings, qube)
        for skipped in catalog.skipped():
            if skipped.failed and "/" not in skipped.name:  # nobody knows whether it is wanted
                wanted[document(config.state_dir, skipped.name, SETTINGS)] = skipped.name, None
    for path, (name, action) in wanted.items():
        if action is not None:
            yield _taken(name, path, action)
    # Documents of qubes that are not backed up any more, and what a crash left half written.
    for path in children(config.state_dir / SETTINGS):
        if path.suffix and is_file(path) and path not in wanted:
            path.unlink(missing_ok=True)


def _taken(name: str, path: Path, action: Callable[[Path], bool]) -> Taken:
    """What fails for one does not keep the others."""
    try:
        return Taken(name, action(path))
    except Refused as error:
        return Taken(name, error=str(error))
    except OSError as error:
        return Taken(name, error=f"{path}: {error.strerror}")
    except KeyError:
        return Taken(name)  # the qube went meanwhile


def _age(path: Path) -> float:
    """Seconds since a document was known to be right; endless where nobody can tell, because it is
    not there, or the clock was ahead then.
    """
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
    return age if age >= 0 else float("inf")


def _take_settings(qube: str, path: Path) -> bool:
    raw = collect(qube)
    if _is_there(path, lambda: path.read_bytes() == raw):
        os.utime(path)
        return False
    replace(path, raw)
    return True


def _is_there(path: Path, same: Callable[[], bool]) -> bool:
    """Whether a document was saved already as it is now. One that cannot be read any more was not:
    it is replaced, by which it is on another place of the disk.
    """
    try:
        return is_file(path) and same()
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return False


def _describe(options: QubesOptions, folder: Path) -> Iterator[machine.Item]:
    for left in folder.glob("luks-*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    yield from machine.collect(options.luks_headers, folder)


def _take_config(files: tuple[str, ...], path: Path, options: QubesOptions | None = None) -> bool:
    beside = path.with_name(path.name + ".new")
    pool = FileSource(Volume(*CONFIG, Pool(SETTINGS, SETTINGS, path.parent), path.name))
    try:
        with open(beside, "w+b") as out:
            described = _describe(options, path.parent) if options and options.machine else ()

            def require_room() -> None:
                pool.require_room()
                if out.tell() > CONFIG_LIMIT - _END:
                    raise Refused(
                        Code.NO_SPACE,
                        f"{'/'.join(CONFIG)} would have more than {CONFIG_LIMIT >> 30} GiB, which"
                        " could not be restored; name less in dom0_config of agent.toml",
                    )

            left_out = config_tar.write(files, out, require_room, described)
            out.flush()
            os.fsync(out.fileno())
        if _is_there(path, lambda: filecmp.cmp(beside, path, shallow=False)):
            beside.unlink()
            os.utime(path)
            return False
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    for line in left_out[:_TOLD]:
        log(WARNING, f"{'/'.join(CONFIG)}: left out: {line}")
    if len(left_out) > _TOLD:
        log(WARNING, f"{len(left_out) - _TOLD} more are left out; the archive lists them")
    return True

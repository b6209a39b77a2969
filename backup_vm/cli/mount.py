# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak mount``: sessions as raw image files, or their files, to copy single files out of
them.
"""

import argparse
import ctypes.util
import errno
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import path, session_option, volume_argument
from backup_vm.cli.reading import partition_option, reading_options
from backup_vm.terminal import output
from common.existing import is_dir

if TYPE_CHECKING:
    from backup_vm.jobs.file_tree import FileTree
    from backup_vm.jobs.mount import SessionImages, Shown


def add_to(commands: Any) -> None:
    """Declare the command."""
    mount = commands.add_parser(
        "mount",
        help="show sessions as image files or their files in a folder, on demand; needs the key",
        description=(
            "Shows each session of a volume as a raw image file, or with --files the files in it,"
            " until the command is interrupted or the folder is unmounted. The archive cannot be"
            " written to meanwhile. What is in an image is as hostile as the qube it came from:"
            " attach it to a disposable qube rather than mounting it here. With --files a child"
            " without any rights parses it, and names and contents are hostile."
        ),
    )
    volume_argument(mount, "whose sessions to show; with --files also 'all'")
    mount.add_argument("folder", type=path, metavar="DIR", help="an empty folder")
    session_option(mount, "all")
    mount.add_argument(
        "--files",
        action="store_true",
        help="show files, below QUBE/VOLUME/SESSION: of the file systems that 'files' reads",
    )
    partition_option(mount)
    mount.add_argument(
        "--allow-other", action="store_true", help="let other users read the images, too"
    )
    reading_options(mount)
    mount.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.errors import SparsebakError, UsageError

    context = Context(options)
    try:
        empty = is_dir(options.folder) and not any(options.folder.iterdir())
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        raise SparsebakError(
            f"{options.folder} is a mount whose program has died",
            f"end it: fusermount3 -u {shlex.quote(str(options.folder))}",
        ) from None
    if not empty:
        raise UsageError(f"{options.folder} is not an empty folder")
    mfusepy = _mfusepy()
    with _sessions(context) as volumes:
        count = sum(map(len, volumes.values()))
        name = next(iter(volumes)) if len(volumes) == 1 else f"{len(volumes)} volumes"
        named = {"volume": name} if len(volumes) == 1 else {"volumes": list(volumes)}
        context.done(
            {**named, "folder": str(options.folder), "sessions": count},
            f"{name}: {count} sessions in {options.folder}; end with Ctrl-C or:"
            f" umount {options.folder}",
        )
        output.flush()  # whoever reads it waits for it, and this runs for long
        shown, more = _file_system(context, volumes)
        names = {"fsname": "sparsebak", "subtype": "sparsebak"}
        try:
            with _signals_to_libfuse():
                mfusepy.FUSE(shown, str(options.folder), foreground=True, ro=True, **names, **more)
        except RuntimeError as error:
            if not shown.mounted:  # else this is how it says that a signal ended it
                raise SparsebakError(
                    f"cannot mount on {options.folder}: libfuse ended with {error}",
                    "see its message above",
                ) from None
        finally:
            shown.end()
    return 0


def _mfusepy() -> Any:
    from backup_vm.errors import SparsebakError

    try:
        from backup_vm.jobs.libfuse import mfusepy
    except (ImportError, OSError):
        missing = (
            "libfuse (package fuse3)" if ctypes.util.find_library("fuse3") is None else "mfusepy"
        )
        raise SparsebakError(
            f"{missing} is not installed", "install it, or use: sparsebak assemble"
        ) from None
    return mfusepy


def _file_system(
    context: Context, volumes: "dict[str, list[Shown]]"
) -> "tuple[SessionImages | FileTree, dict[str, int]]":
    """What libfuse shows, and its options."""
    options = context.options
    more: dict[str, int] = {"allow_other": True} if options.allow_other else {}
    if not options.files:
        from backup_vm.jobs.mount import SessionImages

        return SessionImages(next(iter(volumes.values())), context.warn), more
    from backup_vm.jobs import file_tree

    if options.allow_other:  # what was not theirs in the qube is not theirs here
        more |= {"default_permissions": True}
    tree = file_tree.FileTree(volumes, options.partition, context.warn)
    return tree, more | file_tree.KERNEL


@contextmanager
def _sessions(context: Context) -> "Iterator[dict[str, list[Shown]]]":
    """What is to be shown, by the names of volumes."""
    from backup_vm.archive.packs import PackReader
    from backup_vm.errors import UsageError
    from backup_vm.jobs.lazy_image import ChunkCache
    from backup_vm.jobs.mount import shown_from, shown_sessions

    options = context.options
    if options.partition is not None and not options.files:
        raise UsageError("--partition is for --files", "an image has all partitions")
    if options.source is not None:
        from backup_vm.jobs.granted import granted

        there = granted(options.source, options.grant, options.volume)
        yield {there.name: shown_from(there.qube, there.grant, there.find(options.session))}
        return
    with context.contents(needs_key=True) as contents:
        every = options.files and options.volume == "all"
        volumes = contents.select() if every else [contents.one(options.volume)]
        chosen = [
            (
                volume,
                list(volume.sessions)
                if options.session == "all"
                else [contents.find(volume, options.session)],
            )
            for volume in volumes
        ]
        context.warn_spoilt(contents, [(volume, one) for volume, some in chosen for one in some])
        if options.session == "all":
            context.warn_unread(contents, volumes)
        keys, cache = contents.needed_keys(), ChunkCache()
        with PackReader(contents.archive.storage) as reader:
            yield {
                volume.name: shown_sessions(contents.archive, volume, some, keys, reader, cache)
                for volume, some in chosen
            }


@contextmanager
def _signals_to_libfuse() -> Iterator[None]:
    """Let SIGTERM, SIGHUP and SIGINT end the mount.

    libfuse does so itself where nobody else handles them, and a handler of Python's would wait for
    libfuse to return.
    """
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

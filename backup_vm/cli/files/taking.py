# SPDX-License-Identifier: GPL-2.0-or-later
"""Contents out of one session: ``cat``, ``cp`` and ``tar`` of ``sparsebak files``."""

import argparse
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from backup_vm.cli.context import Context
from backup_vm.cli.files.opening import opened_session, path_of
from backup_vm.terminal.text import count_text, size_text
from common.existing import is_dir

if TYPE_CHECKING:
    from backup_vm.files.session import Found, SessionFiles


def cat(options: argparse.Namespace) -> int:
    """Write a file to standard output."""
    from backup_vm.errors import SparsebakError, UsageError
    from backup_vm.files.session import shown
    from backup_vm.terminal import output

    context = Context(options)
    if context.json:
        raise UsageError("what cat writes is no data for programs", "leave out --json")
    watched = bool(sys.stdout is not None and sys.stdout.isatty())
    with opened_session(context) as files:
        found = files.find(path_of(context))
        if not stat.S_ISREG(found.stat.mode):
            raise SparsebakError(f"{shown(found.path)} is not a regular file")
        reached = 0
        for offset, data in files.contents(found):
            _zeros(offset - reached)
            if watched:  # a terminal obeys what it is sent
                lines = data.decode("utf-8", "replace").split("\n")
                output.put_bytes("\n".join(map(_visible, lines)).encode())
            else:
                output.put_bytes(data)
            reached = offset + len(data)
        _zeros(found.stat.size - reached)
    return 0


def _visible(line: str) -> str:
    from common.text import printable

    return "\t".join(map(printable, line.split("\t")))


def _zeros(count: int) -> None:
    from backup_vm.terminal import output

    while count > 0:
        output.put_bytes(bytes(min(count, 1 << 20)))
        count -= 1 << 20


def cp(options: argparse.Namespace) -> int:
    """Copy files and folders."""
    from backup_vm.errors import Exit, UsageError
    from backup_vm.files.copying import Copier
    from backup_vm.files.session import shown

    context = Context(options)
    target: Path = options.target
    inside = is_dir(target)
    if len(options.path) > 1 and not inside:
        raise UsageError(f"{target} is not a folder", "several files need one to go to")
    with opened_session(context) as files:
        chosen = [_aimed(files, name, target, inside) for name in options.path]
        size = sum(one.stat.size for one, _ in chosen)
        whole = all(stat.S_ISREG(one.stat.mode) for one, _ in chosen)
        with context.progress("copy", size if whole else None) as progress:
            ticks = progress.advance if whole else lambda size: None
            copier = Copier(files, context.warn, options.privileged, ticks)
            for found, where in chosen:
                copier.copy(found, where)
        done = copier.done
        _tell_left_out(context, done.left_out)
        if done.limited:
            context.warn(f"not kept, for this folder cannot: {', '.join(sorted(done.limited))}")
        names = ", ".join(shown(one.path) for one, _ in chosen[:3])
        context.done(
            {
                "files": done.files,
                "size": done.size,
                "failed": done.troubles,
                "left_out": done.left_out,
                "target": str(target),
            },
            f"{target}: {names} as of {files.name}, {count_text(done.files, 'file')},"
            f" {size_text(done.size)}.",
        )
    return Exit.DAMAGED if done.damaged else Exit.FAILED if done.troubles else Exit.OK


def _aimed(files: "SessionFiles", name: str, target: Path, inside: bool) -> "tuple[Found, Path]":
    """A file of the session, and where it goes: ``inside`` the target, under its own name, or to
    the target itself.
    """
    from backup_vm.errors import UsageError

    found = files.find(os.fsencode(name), follow=False)
    base = os.fsdecode(found.path.rpartition(b"/")[2])
    if inside and not base:
        raise UsageError(f"{target} exists", "to copy / give a name that is not there yet")
    return found, target / base if inside else target


def tar(options: argparse.Namespace) -> int:
    """Write a folder to standard output as a tar file. Exit.INCOMPLETE: the tar file is whole, and
    lacks files that were named.
    """
    from backup_vm.errors import Exit, UsageError
    from backup_vm.files.tar import TarWriter
    from backup_vm.terminal import output

    context = Context(options)
    if context.json:
        raise UsageError("what tar writes is no data for programs", "leave out --json")
    if sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("a tar file is nothing for a terminal", "send it to a file: > FILE")
    with opened_session(context) as files:
        top = files.find(path_of(context), follow=False)
        done = TarWriter(files, output.put_bytes, context.warn, options.privileged).write(top)
        output.flush()
    _tell_left_out(context, done.left_out)
    if done.troubles:
        context.warn(f"the tar file lacks {count_text(done.troubles, 'file')}, named above")
    return Exit.INCOMPLETE if done.troubles else Exit.OK


def _tell_left_out(context: Context, count: int) -> None:
    if count:
        context.warn(
            f"{count_text(count, 'thing')} left out (devices, setuid bits, attributes that give"
            " rights): to copy them give --privileged"
        )

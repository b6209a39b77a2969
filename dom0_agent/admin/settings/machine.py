# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine of the same kind is to be made of again: packages, preferences, ``/boot`` in a
list, partition tables, and on request the headers of its LUKS containers.

It goes along with dom0's configuration, as small files in a folder of their own. What cannot be had
is a line of what is left out, and keeps nothing else from being saved.
"""

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common import programs
from common.existing import exists

FOLDER = "sparsebak-machine"
"""Where it is in the archive."""
LUKS = "luks"
"""Below FOLDER: headers, each named for its device."""
_LARGEST = 64 << 20
"""Bytes of one file; a LUKS header has 16 MiB."""
_PATIENCE = 120
"""Seconds for one command."""
_LUKS_MAGIC, _SIGNATURE = b"LUKS\xba\xbe", b"\x55\xaa"
"""At a container's beginning; and at the end of a disk's first 512 bytes, with GPT, too."""
_DISKS = Path("/sys/block")
_DEVICES = Path("/dev")
_BOOT = Path("/boot")


@dataclass(frozen=True)
class Item:
    """A file, or why there is none."""

    name: str
    contents: bytes = b""
    error: str = ""


class _Failed(Exception):
    """Why something cannot be had."""


def collect(luks_headers: bool, scratch: Path) -> Iterator[Item]:
    """All of it, in a fixed order. ``scratch``: a folder that only dom0's administrator can read.

    With ``luks_headers`` also these: who has one and an old passphrase can open the disk even after
    that passphrase was taken from it.
    """
    yield _output("packages.txt", "rpm", "-qa", in_order=True)
    yield _output("qubes-prefs.txt", "qubes-prefs")
    yield _boot()
    for disk in _disks():
        yield _output(f"partitions/{disk}.sfdisk", "sfdisk", "--dump", str(_DEVICES / disk))
    if luks_headers:
        for device in _containers():
            yield _header(device, scratch)


def _output(name: str, *command: str, in_order: bool = False) -> Item:
    try:
        found = _run(*command)
    except _Failed as error:
        return Item(name, error=str(error))
    if in_order:
        found = b"".join(sorted(found.splitlines(keepends=True)))
    return Item(name, found)


def _run(*command: str) -> bytes:
    """What a command printed; raise _Failed."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    try:
        done = programs.ask(command, _PATIENCE, _LARGEST, environment)
    except FileNotFoundError:
        raise _Failed(f"{command[0]} is not installed") from None
    except programs.TooMuch:
        raise _Failed(f"{command[0]} printed more than {_LARGEST >> 20} MiB") from None
    except subprocess.TimeoutExpired:
        raise _Failed(f"{command[0]} did not end within {_PATIENCE} s") from None
    except OSError as error:
        raise _Failed(f"{command[0]}: {error.strerror}") from None
    if done.code:
        said = done.said.strip().splitlines()
        raise _Failed(f"{command[0]}: {said[-1] if said else f'exit code {done.code}'}")
    return done.out


def _boot() -> Item:
    """Mode, size and path of everything in /boot: its contents come back with the packages."""
    name, lines = "boot.txt", []
    unread: list[OSError] = []
    for folder, folders, files in os.walk(_BOOT, onerror=unread.append):
        folders.sort()
        for path in [Path(folder) / one for one in sorted(files)]:
            try:
                found = path.lstat()
                target = f" -> {os.readlink(path)}" if stat.S_ISLNK(found.st_mode) else ""
            except OSError:  # it went meanwhile
                continue
            lines.append(f"{stat.filemode(found.st_mode)} {found.st_size:>12} {path}{target}\n")
    if not lines:
        return Item(name, error=f"{_BOOT} is empty or cannot be read")
    lines += [f"{error.filename} cannot be read: {error.strerror}\n" for error in unread]
    return Item(name, "".join(lines).encode("utf-8", "surrogateescape"))


def _disks() -> list[str]:
    """Disks of the machine that have a partition table."""
    return [device.name for device in _built_in() if _reads(device.name, 510, _SIGNATURE)]


def _containers() -> list[str]:
    """Disks of the machine, and their partitions, that begin as a LUKS container does."""
    names = [
        name
        for device in _built_in()
        for name in (device.name, *(part.parent.name for part in device.glob("*/partition")))
    ]
    return [name for name in sorted(names) if _reads(name, 0, _LUKS_MAGIC)]


def _built_in() -> list[Path]:
    """Whole disks, in sysfs, that are hardware of this machine. What a qube can write to (loop
    devices, device-mapper) and what somebody plugs in is not looked at.
    """
    return [
        device
        for device in sorted(_DISKS.glob("*"))
        if exists(device / "device")
        and _line(device / "removable") != "1"
        and "/usb" not in str(device.resolve())
    ]


def _line(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _reads(name: str, offset: int, expected: bytes) -> bool:
    """Whether a device has these bytes there."""
    try:
        with open(_DEVICES / name, "rb", buffering=0) as device:
            device.seek(offset)
            return device.read(len(expected)) == expected
    except OSError:  # a card reader without a card
        return False


def _header(name: str, scratch: Path) -> Item:
    """A container's header, as cryptsetup takes it: with all key slots, still closed."""
    item = f"{LUKS}/{name}.header"
    # cryptsetup writes only a file that is not there yet.
    with tempfile.TemporaryDirectory(prefix="luks-", dir=scratch) as folder:
        file = Path(folder) / "header"
        try:
            device = str(_DEVICES / name)
            _run("cryptsetup", "luksHeaderBackup", device, "--header-backup-file", str(file))
            if file.stat().st_size > _LARGEST:
                return Item(item, error=f"it is larger than {_LARGEST >> 20} MiB")
            return Item(item, file.read_bytes())
        except (_Failed, OSError) as error:
            return Item(item, error=str(error))

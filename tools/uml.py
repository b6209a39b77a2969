# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that runs as a program, User Mode Linux: Debian has it as a package, with device-mapper
and the file systems. What its guest computes is computed by the processor itself, so that tests in
it take a fraction of what they take under emulation. It uses one core.

Nothing is installed: the package is unpacked.
"""

import re
import shutil
import subprocess
from pathlib import Path

PACKAGE = "user-mode-linux"
ROOMY = 3 << 30
"""Bytes that the folder of the guest's memory is to have free."""


def kernel(build: Path) -> tuple[Path, Path] | None:
    """The kernel and its modules, unpacked under ``build``; None where no package is to be had."""
    tree = build / "uml"
    if not tree.exists():
        new = tree.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        got = subprocess.run(
            ["apt-get", "-qq", "download", PACKAGE],
            cwd=new,
            capture_output=True,
            text=True,
            check=False,
        )
        if got.returncode:
            shutil.rmtree(new)
            return None
        (archive,) = new.glob("*.deb")
        subprocess.run(["dpkg", "-x", archive, new], check=True)
        archive.unlink()
        new.rename(tree)
    (modules,) = (tree / "usr/lib/uml/modules").iterdir()
    return tree / "usr/bin/linux.uml", modules


def command(kernel: Path, image: Path, memory: str) -> list[str]:
    """Boot with the initramfs ``image``: the console is standard output, and nothing comes in."""
    return [
        str(kernel), f"mem={memory}", f"initrd={image}", "rdinit=/init", "quiet", "loglevel=3",
        "panic=-1", "con=null", "con0=null,fd:1", "ssl=null",
    ]  # fmt: skip


def memory_folder(build: Path) -> Path:
    """Where the guest's memory, which is a file, is to be: in memory if programs may be run there.

    Docker's /dev/shm is small, and none of its files may be run.
    """
    shm = Path("/dev/shm")
    if not shm.is_dir() or shutil.disk_usage(shm).free < ROOMY:
        return build
    mounted = re.search(r" /dev/shm (\S+)", Path("/proc/self/mountinfo").read_text())
    return build if mounted and "noexec" in mounted[1].split(",") else shm

# SPDX-License-Identifier: GPL-2.0-or-later
"""LVM's programs of another distribution in the guest of lvm_vm.py: ``LVM_ROOT=FOLDER python
tools/lvm_vm.py tests/lvm``.

FOLDER is a root file system, say by ``debootstrap --include=lvm2,thin-provisioning-tools trixie
FOLDER``. Only those programs and their libraries come from it, in a folder of the guest that they
are run within; all else is the host's.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

PROGRAMS = ("lvm", "dmsetup", "pdata_tools")
INSIDE = "/other"
MOUNTS = ("dev", "proc", "sys", "run", "scratch")
START = f"""
for folder in {" ".join(MOUNTS)}; do /bin/busybox mount --bind /$folder {INSIDE}/$folder; done
"""
"""What the guest does before it runs anything."""
WRAPPER = f"""#!/bin/busybox sh
exec /bin/busybox chroot {INSIDE} /usr/sbin/$(/bin/busybox basename $0) "$@"
"""


def given() -> Path | None:
    """The other root, if one was named."""
    return Path(os.environ["LVM_ROOT"]) if "LVM_ROOT" in os.environ else None


def place(root: Path, tree: Path, links: dict[str, str]) -> None:
    """Put the programs of ``root`` into the guest's ``tree``, with a wrapper for each; ``links``
    are names for them.
    """
    inside = tree / INSIDE.lstrip("/")
    for folder in (*MOUNTS, "etc/lvm", "usr/sbin"):
        (inside / folder).mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        _copy(root, inside, f"/usr/sbin/{program}")
        listed = subprocess.run(
            ["chroot", root, "ldd", f"/usr/sbin/{program}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for library in re.findall(r"(?:=> |^\s+)(/\S+)", listed, re.MULTILINE):
            _copy(root, inside, library)
    wrapper = tree / "usr/sbin/lvm"
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    wrapper.write_text(WRAPPER)
    wrapper.chmod(0o755)
    (tree / "usr/sbin/dmsetup").write_text(WRAPPER)
    (tree / "usr/sbin/dmsetup").chmod(0o755)
    for name, program in links.items():
        (tree / "usr/sbin" / name).write_text(WRAPPER)
        (tree / "usr/sbin" / name).chmod(0o755)
        (inside / "usr/sbin" / name).symlink_to(program)


def _copy(root: Path, inside: Path, name: str) -> None:
    """A file to the same place, found through the links of ``root``, which has /lib and /lib64 as
    links to /usr.
    """
    target = inside / name.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(root / name.lstrip("/"), target)

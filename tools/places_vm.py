# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs tests in a VM whose kernel has NFS, FAT, exFAT and quotas: ``python tools/places_vm.py
PYTEST-ARGUMENT...``; the second half of ``make test-places``.

The VM is that of lvm_vm.py, with the programs that make and mount these.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import lvm_guest
import lvm_vm

BUILD = lvm_guest.ROOT / "build" / "places"
PROGRAMS = (
    *("mkfs.fat", "mkfs.exfat", "setquota", "chattr"),
    *("mount.nfs", "rpcbind", "rpc.mountd", "rpc.nfsd", "exportfs", "ip"),
)
MODULES = (
    *("vfat", "exfat", "nls-cp437", "nls-iso8859-1", "nls-utf8", "nls-ascii", "quota-v2"),
    *("nfsd", "nfs", "nfsv3", "nfsv4"),
)


def main(arguments: list[str]) -> int:
    """Boot, run it, and pass its output on."""
    missing = [program for program in PROGRAMS if lvm_guest.which(program) is None]
    if missing:
        print(f"the test VM: {', '.join(missing)} missing; run 'make test-places' as root")
        return 1
    lvm_vm.BUILD, lvm_vm.AS_PROGRAM = BUILD, False
    lvm_guest.TOOLS = (*lvm_guest.TOOLS, *PROGRAMS)
    lvm_guest.MODULES += MODULES
    lvm_guest.ADDED.append(place)
    return lvm_vm.main(arguments)


def place(tree: Path) -> None:
    """Put into the guest's ``tree`` what these programs expect there."""
    for link, target in (("mkfs.vfat", "mkfs.fat"), ("mount.nfs4", "mount.nfs")):
        (tree / "usr/sbin" / link).symlink_to(target)
    (tree / "sbin").mkdir(exist_ok=True)
    (tree / "sbin/mount.nfs").symlink_to("/usr/sbin/mount.nfs")
    for folder in ("etc", "var/lib/nfs/v4recovery", "var/lib/nfs/sm", "run/rpcbind"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    for name in ("netconfig", "protocols", "services", "rpc"):
        source = Path("/etc") / name
        if source.exists():
            (tree / "etc" / name).write_bytes(source.read_bytes())
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n")
    for name in ("etab", "rmtab"):
        (tree / "var/lib/nfs" / name).touch()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

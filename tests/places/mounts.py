# SPDX-License-Identifier: GPL-2.0-or-later
"""Real mounts of the kinds on which people keep archives; see ``MOUNTS``."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import cannot, fault_system
from tests.faultfs import Fault, missing
from tests.patience import PATIENCE
from tests.remote.kit import ssh_server

SIZE = 300 << 20


def needs(*programs: str) -> None:
    """Skip the test where one of these is not installed, or nothing can be mounted."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    lacking = [program for program in programs if shutil.which(program, path=path) is None]
    if lacking:
        cannot(f"{', '.join(lacking)} not installed; run 'make test-places' as root")
    if os.geteuid() != 0:
        cannot("mounting a file system needs root")


def _run(*words: str | Path) -> None:
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise OSError(f"{words[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")


@contextmanager
def _mounted(folder: Path, *command: str | Path) -> Iterator[Path]:
    """Run what mounts something at ``folder``, and unmount it in the end."""
    folder.mkdir(exist_ok=True)
    _run(*command, folder)
    try:
        deadline = time.monotonic() + PATIENCE
        while not os.path.ismount(folder):
            assert time.monotonic() < deadline, "not mounted"
            time.sleep(0.02)
        yield folder
    finally:
        for _ in range(50):  # a daemon may still be at it
            if subprocess.run(["umount", folder], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        else:
            _run("umount", "-l", folder)


def image(folder: Path, *make: str, size: int = SIZE) -> Path:
    """A file system in a file."""
    path = folder / "disk.img"
    with open(path, "wb") as file:
        file.truncate(size)
    _run(*make, path)
    return path


@contextmanager
def loop(path: Path) -> Iterator[Path]:
    """A block device for it."""
    done = subprocess.run(
        ["losetup", "--show", "-f", path], check=True, capture_output=True, text=True
    )
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        _run("losetup", "-d", device)


@contextmanager
def fuse(folder: Path, *options: str, faults: tuple[Fault, ...] = ()) -> Iterator[Path]:
    """A FUSE file system that can do less, or fails: see tests/faultfs.py."""
    if missing():
        cannot(missing())
    with fault_system(folder / "faultfs", *options) as system:
        system.fail(*faults)
        yield system.path


@contextmanager
def sshfs(folder: Path, *options: str) -> Iterator[Path]:
    """Another host's folder, by sshfs."""
    needs("sshfs")
    (folder / "ssh").mkdir()
    with ssh_server(folder / "ssh") as server:
        (folder / "ssh/there").mkdir()
        home = folder / "ssh/home/.ssh"
        ours = [f"IdentityFile={folder}/ssh/user", f"UserKnownHostsFile={home}/known_hosts"]
        words = [f"-o{option}" for option in (*ours, *options)]
        where = f"{server.user}@127.0.0.1:{folder}/ssh/there"
        command = ["sshfs", "-p", str(server.port), *words, where]
        with _mounted(folder / "mount", *command) as path:
            yield path


@contextmanager
def ntfs_3g(folder: Path) -> Iterator[Path]:
    """NTFS by ntfs-3g."""
    needs("mkntfs", "ntfs-3g")
    made = image(folder, "mkntfs", "-F", "-Q")
    with _mounted(folder / "mount", "ntfs-3g", made) as path:
        yield path


@contextmanager
def exfat_fuse(folder: Path) -> Iterator[Path]:
    """exFAT by exfat-fuse."""
    needs("mkfs.exfat", "mount.exfat-fuse", "losetup")
    with (
        loop(image(folder, "mkfs.exfat")) as device,
        _mounted(folder / "mount", "mount.exfat-fuse", device) as path,
    ):
        yield path


def _kernel_has(kind: str) -> bool:
    with contextlib.suppress(OSError):
        _run("modprobe", kind)
    return kind in Path("/proc/filesystems").read_text().split()


@contextmanager
def _kernels(folder: Path, kind: str, options: str, *make: str) -> Iterator[Path]:
    needs(make[0])
    if not _kernel_has(kind):
        cannot(f"this kernel has no {kind}; 'make test-places' runs it in a VM")
    made = image(folder, *make)
    command = ["mount", "-t", kind, "-o", f"loop{options}", made]
    with _mounted(folder / "mount", *command) as path:
        yield path


@contextmanager
def quota(folder: Path, blocks: int = 60_000) -> Iterator[Path]:
    """A folder on ext4 for which a project quota holds, of so many KiB."""
    with _kernels(folder, "ext4", ",prjquota", *EXT4_QUOTA) as disk:
        path = disk / "mine"
        path.mkdir()
        _run("chattr", "-p", "7", path)
        _run("chattr", "+P", path)
        _run("setquota", "-P", "7", "0", str(blocks), "0", "0", disk)
        yield path


EXT4_QUOTA = ("mke2fs", "-t", "ext4", "-q", "-O", "project,quota", "-E", "quotatype=prjquota")


@contextmanager
def nfs(folder: Path, options: str) -> Iterator[Path]:
    """A folder that this machine's own kernel serves by NFS."""
    needs("exportfs", "rpc.nfsd", "rpc.mountd", "rpcbind", "mount.nfs")
    if not (_kernel_has("nfs") and _kernel_has("nfsd")):
        cannot("this kernel has no NFS; 'make test-places' runs it in a VM")
    with _kernels(folder, "ext4", "", "mke2fs", "-t", "ext4", "-q") as disk, _served(disk):
        (folder / "nfs").mkdir()
        command = ["mount", "-t", "nfs", "-o", options, f"127.0.0.1:{disk}"]
        with _mounted(folder / "nfs", *command) as path:
            yield path


@contextmanager
def _served(disk: Path) -> Iterator[None]:
    if "SPARSEBAK_VM" in os.environ:
        _run("ip", "link", "set", "lo", "up")
        with open("/etc/passwd", "a") as file:  # whom rpcbind becomes
            file.write("_rpc:x:100:65534::/run/rpcbind:/bin/sh\n")
    with contextlib.suppress(OSError):  # it is there
        _run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    with contextlib.suppress(OSError):  # it runs
        _run("rpcbind", "-w")
    _run("exportfs", "-i", "-o", "rw,no_root_squash,insecure,fsid=7", f"127.0.0.1:{disk}")
    _run("rpc.mountd")
    _run("rpc.nfsd", "4")
    try:
        yield
    finally:
        _run("rpc.nfsd", "0")
        _run("exportfs", "-ua")


Mount = Callable[[Path], contextlib.AbstractContextManager[Path]]
MOUNTS: dict[str, Mount] = {
    "fuse": lambda folder: fuse(folder),
    "fuse, poor": lambda folder: fuse(
        folder,
        *("direct_io", "no_flock", "no_punch", "statfs_zero", "fixed_mode", "no_replace"),
        faults=(Fault("fsyncdir", "EINVAL"), Fault("link", "EPERM"), Fault("symlink", "EPERM")),
    ),
    "fuse, no fsync": lambda folder: fuse(
        folder, faults=(Fault("fsync", "ENOSYS"), Fault("fsyncdir", "ENOSYS"))
    ),
    "fuse, no locks": lambda folder: fuse(folder, faults=(Fault("flock", "ENOLCK"),)),
    "sshfs": lambda folder: sshfs(folder),
    "sshfs direct_io": lambda folder: sshfs(folder, "direct_io"),
    "ntfs-3g": ntfs_3g,
    "exfat-fuse": exfat_fuse,
}
KERNELS: dict[str, Mount] = {
    "vfat": lambda folder: _kernels(folder, "vfat", "", "mkfs.vfat", "-F", "32"),
    "exfat": lambda folder: _kernels(folder, "exfat", "", "mkfs.exfat"),
    "nfs 3, no locks": lambda folder: nfs(folder, "vers=3,nolock"),
    "nfs 4": lambda folder: nfs(folder, "vers=4.2"),
    "quota": quota,
}

# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs tests in a VM whose kernel has ZFS: ``make test-zfs``, or ``python tools/zfs_vm.py
PYTEST-ARGUMENT...``.

The VM is that of lvm_vm.py. Debian has ZFS's modules as source (zfs-dkms, in contrib): they are
built once for the VM's kernel, which takes four minutes, and kept under ``build/zfs`` with the
programs of the same version. Nothing of it is installed on this machine.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import lvm_guest
import lvm_vm

BUILD = lvm_guest.ROOT / "build" / "zfs"
USER = BUILD / "user"
"""ZFS's programs and libraries, unpacked."""
PROGRAMS = ("sbin/zfs", "sbin/zpool", "lib/udev/zvol_id")
PACKAGES = (
    "zfs-dkms", "zfsutils-linux", "libzfs4linux", "libzpool5linux", "libnvpair3linux",
    "libuutil3linux",
)  # fmt: skip
SOURCES = """\
Types: deb
URIs: http://deb.debian.org/debian
Suites: {release} {release}-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: {release}-security
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def main(arguments: list[str]) -> int:
    """Build what is not there yet, boot, run it, and pass its output on."""
    lvm_vm.BUILD, lvm_vm.AS_PROGRAM = BUILD, False
    kernel, modules = lvm_vm.kernel()
    if not (BUILD / "built").exists():
        _build(kernel.name.removeprefix("vmlinuz-"), modules)
        (BUILD / "built").touch()
    lvm_guest.MODULES.append("zfs")
    lvm_guest.ADDED.append(place)
    return lvm_vm.main(arguments)


def place(tree: Path) -> None:
    """Put ZFS's programs and their libraries into the guest's ``tree``."""
    own = USER / "lib/x86_64-linux-gnu"
    for name in PROGRAMS:
        _copy(USER / name, tree / "usr" / name)
        listed = subprocess.run(
            ["ldd", USER / name],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "LD_LIBRARY_PATH": str(own)},
        ).stdout
        for library in map(Path, re.findall(r"(?:=> |^\s+)(/\S+)", listed, re.MULTILINE)):
            inside = library.is_relative_to(USER)
            target = "usr/lib/x86_64-linux-gnu/" + library.name if inside else str(library)[1:]
            _copy(library, tree / target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(source, target)


def _build(version: str, modules: Path) -> None:
    """Fetch the packages, build the modules, and put them among those of the VM's kernel."""
    _fetch(f"linux-headers-{version}")
    source = BUILD / "source/usr/src"
    headers = [path for path in source.iterdir() if path.name.startswith("linux-headers-")]
    (common,) = (path for path in headers if path.name.endswith("-common"))
    (own,) = (path for path in headers if path != common)
    for path in (own / "Makefile", common / "Makefile"):  # they name each other as installed
        path.write_text(path.read_text().replace("/usr/src/", f"{source}/"))
    (zfs,) = source.glob("zfs-*")
    with open(BUILD / "build.log", "wb") as log:
        for command in (
            ["./configure", "--with-config=kernel", f"--with-linux={common}"]
            + [f"--with-linux-obj={own}"],
            ["make", f"-j{os.cpu_count()}"],
        ):
            done = subprocess.run(
                command, cwd=zfs, stdout=log, stderr=subprocess.STDOUT, check=False
            )
            if done.returncode:
                sys.exit(f"test-zfs: ZFS's modules could not be built; see {log.name}")
    install(zfs, modules)
    shutil.rmtree(BUILD / "source")


def install(zfs: Path, modules: Path) -> None:
    """Put built modules among those of the VM's kernel."""
    (modules / "extra").mkdir(exist_ok=True)
    for module in (zfs / "module").rglob("*.ko"):
        shutil.copy2(module, modules / "extra" / module.name)
    subprocess.run(["depmod", "-b", modules.parents[2], modules.name], check=True)


def _fetch(headers: str) -> None:
    """Unpack the packages under BUILD, by a list of sources of our own, which has contrib."""
    apt, release = BUILD / "apt", _release()
    for folder in ("lists/partial", "cache/archives/partial", "debs"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "zfs.sources").write_text(SOURCES.format(release=release))
    given = {
        "Dir::Etc::sourcelist": apt / "zfs.sources",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache": apt / "cache",
    }
    options = [word for key, value in given.items() for word in ("-o", f"{key}={value}")]
    subprocess.run(["apt-get", "-qq", *options, "update"], check=True)
    listed = subprocess.run(
        ["apt-cache", *options, "depends", headers], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"Depends: (linux-(?:headers|kbuild)-\S+)", listed)
    subprocess.run(
        ["apt-get", "-qq", *options, "download", headers, *needed, *PACKAGES],
        cwd=apt / "debs",
        check=True,
        stderr=subprocess.DEVNULL,
    )
    for archive in (apt / "debs").glob("*.deb"):
        kernel = archive.name.startswith(("linux-", "zfs-dkms"))
        subprocess.run(["dpkg", "-x", archive, BUILD / "source" if kernel else USER], check=True)
    shutil.rmtree(apt)


def _release() -> str:
    found = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
    if found is None:
        sys.exit("test-zfs: /etc/os-release does not say which release of Debian this is")
    return found[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

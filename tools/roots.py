# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the tests in roots of other distributions: ``make test-roots``, or ``python tools/roots.py
[--root NAME]... [TEST...]``.

Without TEST, ``make test`` as a whole. A root is made once by debootstrap under ``build/roots``, as
root; a clean clone of what is committed is in its ``/sparsebak``, beside a virtual environment of
its own that is kept. Mounts and processes end with the run: they have namespaces of their own. One
line a root says how it went, and its log is beside the root. Exit code: 1 when one failed.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "roots"
ROOTS = {
    "trixie": "Debian 13, with the tools of Qubes 4.3's dom0 and templates",
    "sid": "Debian's newest, with Python 3.14",
}
PACKAGES = "ca-certificates,git,make,python3,python3-venv,sudo"
SETTINGS = 'Acquire::Check-Valid-Until "false";\nAPT::Install-Recommends "false";\n'
"""sid's list of packages is only valid for a week, which a mirror may not keep up with."""
INSIDE = "sparsebak"
AUTHORITIES = Path("usr/local/share/ca-certificates")
"""Who else this machine trusts, so that the root reaches the same registries."""
# The root becomes that of the mounts, and not only of processes: tests change the mounts at / and
# enter those of others.
ENTER = """
set -eu
mount --bind "$1" "$1"
mount --rbind /dev "$1/dev"
mount -t tmpfs tmpfs "$1/dev/shm"
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
mount -t tmpfs tmpfs "$1/run"
cd "$1"
pivot_root . mnt
umount -l /mnt
exec /bin/sh -euc "cd /sparsebak; $2"
"""
VERSIONS = """
python3 -c "import platform; print('Python', platform.python_version())"
dpkg-query -W -f '${Package} ${Version}\\n' \\
    lvm2 thin-provisioning-tools rpm systemd 2>/dev/null || true
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="roots", description="Run the tests in roots of other distributions."
    )
    parser.add_argument(
        "--root", action="append", choices=list(ROOTS), help="this one only; may be repeated"
    )
    parser.add_argument(
        "tests", nargs="*", metavar="TEST", help="for pytest, options after --; default: make test"
    )
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends what runs in the root
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        print("test-roots: needs root and debootstrap (apt-get install debootstrap)")
        return 1
    if subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT, check=False).returncode:
        print("test-roots: what is not committed is not tried")
    BUILD.mkdir(parents=True, exist_ok=True)
    failed = [name for name in given.root or ROOTS if not _passes(name, given.tests)]
    return 1 if failed else 0


def _passes(name: str, tests: list[str]) -> bool:
    """Run the tests in a root and say how it went."""
    started, path = time.monotonic(), BUILD / f"{name}.log"
    words = " ".join(f"'{word}'" for word in tests)
    what = f".venv/bin/pytest {words}" if tests else "make test"
    with open(path, "wb") as log:
        try:
            _make(name, log.fileno())
            _clone(name)
            _inside(name, "make -s packages setup", log.fileno())
            versions = _inside(name, VERSIONS)
            _inside(name, what, log.fileno())
            verdict = "passed"
        except subprocess.CalledProcessError as error:
            verdict, versions = f"FAILED with {error.returncode}", ""
    versions = versions or (_inside(name, VERSIONS) if (BUILD / name).exists() else "")
    counted = re.findall(
        r"^(?:=*\s*(?=\d+ (?:passed|failed|error|skipped))|make test: passed, (?=but))(.*?)(?: in"
        r" [\d.]+s.*)?$",
        path.read_text(errors="replace"),
        re.M,
    )
    print(
        f"{name} ({', '.join(versions.splitlines())}): {verdict} after"
        f" {time.monotonic() - started:.0f} s{'; ' if counted else ''}{'; '.join(counted)}; log:"
        f" {path.relative_to(ROOT)}",
        flush=True,
    )
    return verdict == "passed"


def _make(name: str, log: int) -> None:
    """The root of a run; what tests of the run before left in it goes."""
    root = BUILD / name
    made(name, root, PACKAGES, log)
    for left in (root / "tmp").iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    (root / "etc/apt/apt.conf.d/99sparsebak").write_text(SETTINGS)
    reaching(root, log)


def made(suite: str, root: Path, packages: str, log: int) -> None:
    """The root by debootstrap, in one step: what was interrupted is begun again."""
    new = root.with_suffix(".new")
    if not root.exists():
        shutil.rmtree(new, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(new)]
        subprocess.run(command, check=True, stdout=log, stderr=log)
        new.rename(root)


def reaching(root: Path, log: int) -> None:
    """A root that reaches the registries that this machine reaches."""
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    shutil.copytree(Path("/") / AUTHORITIES, root / AUTHORITIES, dirs_exist_ok=True)
    subprocess.run(["chroot", root, "update-ca-certificates"], check=True, stdout=log, stderr=log)


def _clone(name: str) -> None:
    """What is committed, clean except for what git ignores: the virtual environment and build/."""
    tree = BUILD / name / INSIDE
    git = ["git", "-c", "advice.detachedHead=false"]
    if not tree.exists():
        subprocess.run([*git, "clone", "-q", "--no-hardlinks", ROOT, tree], check=True)
    for step in (
        ["fetch", "-q", ROOT, "HEAD"],
        ["checkout", "-q", "--force", "FETCH_HEAD"],
        ["clean", "-fdq"],
    ):
        subprocess.run([*git, *step], cwd=tree, check=True)


def _inside(name: str, command: str, log: int | None = None) -> str:
    """Run a command in the root: its output, or into ``log``. CalledProcessError when it fails."""
    kept = ("TERM", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    environment = {word: os.environ[word] for word in kept if word in os.environ}
    environment |= {"HOME": "/root", "LANG": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "enter",
         str(BUILD / name), command],
        check=True, env=environment, stdin=subprocess.DEVNULL, stdout=log or subprocess.PIPE,
        stderr=log or subprocess.DEVNULL,
    )  # fmt: skip
    return (done.stdout or b"").decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs tests in a VM whose kernel has device-mapper: ``make test-lvm``, or ``python tools/lvm_vm.py
PYTEST-ARGUMENT...``.

With ``-m MODULE`` first, that module in pytest's place.

The guest is Debian's kernel that runs as a program (see uml.py), or where there is none, or where
it does not start, or ``LVM_KERNEL=stock`` asks for it, Debian's stock kernel under QEMU's software
emulation, so that no KVM is needed. Its root file system is an initramfs made by lvm_guest.py: this
Python, the virtual environment, LVM's tools with their libraries, the project. Results come over
the console. Kernels and images are kept under ``build``. Exit code: that of what ran; 1 when it did
not get so far.
"""

import base64
import contextlib
import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import lvm_guest
import uml
from lvm_guest import ROOT, TOOLS, which

BUILD = ROOT / "build" / "lvm"
AS_PROGRAM = os.environ.get("LVM_KERNEL") != "stock"
"""Whether the kernel may be the one that runs as a program, which has device-mapper and not all
else that the stock kernel has.
"""
MEMORY, CPUS, LIMIT = "6G", "2", float(os.environ.get("LVM_LIMIT", "1800"))
BEGINS = "sparsebak-vm: begins"
DONE = re.compile(r"sparsebak-vm: ended with (\d+)")
MEASURED = re.compile(r"sparsebak-vm: measured (\S+)")


def main(arguments: list[str]) -> int:
    """Boot, run it, and pass its output on."""
    words = (
        arguments[1:]
        if arguments[:1] == ["-m"]
        else ["pytest", "-p", "no:cacheprovider", *arguments]
    )
    program = uml.kernel(ROOT / "build") if AS_PROGRAM and which("apt-get") else None
    if program is not None:
        code = _run(words, *program, as_program=True)
        if code is not None:
            return code
        print("the kernel that runs as a program does not start here: with QEMU instead")
    if which("qemu-system-x86_64") is None:
        return _missing(["qemu-system-x86_64"])
    code = _run(words, *kernel(), as_program=False)
    return 1 if code is None else code


def _missing(tools: list[str]) -> int:
    print(f"the test VM: {', '.join(tools)} missing; run 'make packages' as root", file=sys.stderr)
    return 1


def _run(words: list[str], image: Path, modules: Path, as_program: bool) -> int | None:
    """The guest with a kernel and its modules, as ``_boot``."""
    missing = [tool for tool in ("busybox", "depmod", *TOOLS) if which(tool) is None]
    if missing:
        return _missing(missing)
    BUILD.mkdir(parents=True, exist_ok=True)
    parts = (lvm_guest.base(BUILD, modules), lvm_guest.project(BUILD, words, modules))
    combined = BUILD / "root.cpio"
    with open(combined, "wb") as out:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
    if not as_program:
        return _boot(_emulated(image, combined), {})
    folder = uml.memory_folder(BUILD)
    return _boot(uml.command(image, combined, MEMORY), {"TMPDIR": str(folder)})


def _emulated(kernel: Path, image: Path) -> list[str]:
    machine = f"-accel tcg,thread=multi,tb-size=1024 -cpu max -smp {CPUS} -m {MEMORY}"
    bare = "-nodefaults -no-user-config -display none -serial stdio -no-reboot"
    # no_timer_check: on a busy machine an emulated timer misses the kernel's one look at it, and
    # the kernel gives up.
    words = "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off no_timer_check"
    return [
        "qemu-system-x86_64", *machine.split(), *bare.split(), "-kernel", str(kernel),
        "-initrd", str(image), "-append", words,
    ]  # fmt: skip


def _boot(command: list[str], environment: dict[str, str]) -> int | None:
    """The exit code of what ran in it; None if nothing did."""
    started, code = time.monotonic(), None
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace",
        env={**os.environ, **environment}, start_new_session=True,
    ) as vm:  # fmt: skip

        def end() -> None:
            """With the processes that a kernel as a program has for those in it."""
            with contextlib.suppress(ProcessLookupError):
                os.killpg(vm.pid, signal.SIGKILL)

        timer = threading.Timer(LIMIT, end)
        timer.start()
        assert vm.stdout is not None
        try:
            for line in vm.stdout:
                found, measured = DONE.search(line), MEASURED.search(line)
                if BEGINS in line:
                    code = 1
                elif found:
                    code = int(found[1])
                elif measured:
                    (ROOT / "build/coverage/data.vm").write_bytes(
                        gzip.decompress(base64.b64decode(measured[1]))
                    )
                else:
                    print(line.rstrip("\r\n"), flush=True)
        finally:
            timer.cancel()
            end()
    print(
        f"test VM: {'passed' if code == 0 else 'FAILED'} after {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return code


def kernel() -> tuple[Path, Path]:
    """Debian's newest stock kernel, unpacked: its image and its modules."""
    tree = BUILD / "kernel"
    if not list(tree.glob("boot/vmlinuz-*")):
        if which("apt-get") is None:
            sys.exit(
                "the test VM's kernel comes from Debian's packages; elsewhere, as root: pytest"
                " tests/lvm tests/zfs"
            )
        shutil.rmtree(BUILD, ignore_errors=True)
        BUILD.mkdir(parents=True)
        depends = subprocess.run(
            ["apt-cache", "depends", "linux-image-amd64"],
            capture_output=True,
            text=True,
            check=True,
        )
        package = re.search(r"linux-image-[\d.]+[\w.+-]*-amd64", depends.stdout)
        if package is None:
            sys.exit("no kernel package found; run 'apt-get update' first")
        subprocess.run(
            ["apt-get", "-qq", "download", package[0]],
            cwd=BUILD,
            check=True,
            stderr=subprocess.DEVNULL,
        )
        (archive,) = BUILD.glob("linux-image-*.deb")
        subprocess.run(["dpkg", "-x", archive, tree.with_suffix(".new")], check=True)
        archive.unlink()
        if not (tree.with_suffix(".new") / "lib").exists():  # as Debian 13 has it
            (tree.with_suffix(".new") / "lib").symlink_to("usr/lib")
        (version,) = (path.name for path in (tree.with_suffix(".new") / "lib/modules").iterdir())
        subprocess.run(["depmod", "-b", tree.with_suffix(".new"), version], check=True)
        tree.with_suffix(".new").rename(tree)
    (kernel,), (modules,) = tree.glob("boot/vmlinuz-*"), (tree / "lib/modules").iterdir()
    return kernel, modules


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the VM
    sys.exit(main(sys.argv[1:]))

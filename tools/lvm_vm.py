# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs tests in a VM whose kernel has device-mapper: ``make test-lvm``, or ``python tools/lvm_vm.py
PYTEST-ARGUMENT...``.

With ``-m MODULE`` first, that module in pytest's place.

The guest is Debian's stock kernel under QEMU's software emulation, so that no KVM is needed. Its
root file system is an initramfs made here: this Python, the virtual environment, LVM's tools with
their libraries, the project. Results come over the serial console. Kernel and images are kept under
``build/lvm``. Exit code: that of what ran; 1 when it did not get so far.
"""

import base64
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import lvm_root

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "lvm"
TOOLS = ("lvm", "dmsetup", "pdata_tools", "losetup", "blkdiscard", "mke2fs", "mount", "umount")
LINKS = dict.fromkeys(
    ("thin_delta", "thin_dump", "thin_restore", "thin_ls", "thin_check"), "pdata_tools"
) | {
    kind + verb: "lvm"
    for kind in ("vg", "lv", "pv")
    for verb in ("create", "remove", "change", "s", "resize", "extend", "convert", "rename")
}
MODULES = ["crc32c-generic", "dm-thin-pool", "dm-snapshot", "loop", "ext4"]
ADDED: list[Callable[[Path], None]] = []
"""What else is put into the guest's tree, by functions that are given it: see zfs_vm.py."""
SKIPPED = re.compile(
    r"/(tests?|idlelib|lib2to3|tkinter|turtledemo|ensurepip|pip|mypy|mypyc|setuptools|pkg_resources|_distutils_hack|wheel|atheris|numpy/f2py"
    r"|config-\d[^/]*|site-packages/[^/]*mypyc[^/]*\.so|ruff[^/]*|torch[^/]*|[^/]*_with_fuzzer\.so|libclang_rt[^/]*|sparsebak-coverage.pth)(/|$)|\.(a|pyi|h|exe)$"
)
MEMORY, CPUS, LIMIT = "6G", "2", float(os.environ.get("LVM_LIMIT", "900"))
DONE = re.compile(r"sparsebak-vm: ended with (\d+)")
MEASURED = re.compile(r"sparsebak-vm: measured (\S+)")
HOOK = "sparsebak-coverage.pth"
"""Of tools/coverage.py: while it is there, what runs in the guest is measured, and the measurement
comes over the console.
"""
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mkdir -p /dev/shm /run /var/lock /etc/lvm /scratch
/bin/busybox mount -t tmpfs -o size=90% tmpfs /scratch
for module in {modules}; do /bin/busybox modprobe $module; done
{start}echo 0 >/proc/sys/kernel/randomize_va_space
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/scratch TMPDIR=/scratch LANG=C.UTF-8
export SPARSEBAK_VM=1 PYTHONHASHSEED=0 {environ}
cd {root}
mkdir -p build/coverage
{python} -m {arguments} </dev/null
code=$?
if [ -n "$(ls build/coverage)" ]; then
    {python} -m coverage combine -q
    measured=$(/bin/busybox gzip -c build/coverage/data | /bin/busybox base64)
    echo "sparsebak-vm: measured $(echo "$measured" | /bin/busybox tr -d '\\n')"
fi
echo "sparsebak-vm: ended with $code"
/bin/busybox poweroff -f
"""


def main(arguments: list[str]) -> int:
    """Boot, run it, and pass its output on."""
    words = (
        arguments[1:]
        if arguments[:1] == ["-m"]
        else ["pytest", "-p", "no:cacheprovider", *arguments]
    )
    missing = [
        tool for tool in ("qemu-system-x86_64", "busybox", "depmod", *TOOLS) if _which(tool) is None
    ]
    if missing:
        print(
            f"the test VM: {', '.join(missing)} missing; run 'make packages' as root",
            file=sys.stderr,
        )
        return 1
    image, modules = kernel()
    base = _base(modules)
    project = BUILD / "project.cpio"
    _project(project, words)
    combined = BUILD / "root.cpio"
    with open(combined, "wb") as out:
        for part in (base, project):
            with open(part, "rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
    return _boot(image, combined)


def _boot(kernel: Path, image: Path) -> int:
    command = [
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi,tb-size=1024",
        "-cpu",
        "max",
        "-smp",
        CPUS,
        "-m",
        MEMORY,
    ]
    command += [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
    ]
    # no_timer_check: on a busy machine an emulated timer misses the kernel's one look at it, and
    # the kernel gives up.
    command += [
        "-kernel",
        str(kernel),
        "-initrd",
        str(image),
        "-append",
        "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off no_timer_check",
    ]
    started, code = time.monotonic(), 1
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as vm:
        timer = threading.Timer(LIMIT, vm.kill)
        timer.start()
        assert vm.stdout is not None
        for line in vm.stdout:
            found, measured = DONE.search(line), MEASURED.search(line)
            if found:
                code = int(found[1])
            elif measured:
                (ROOT / "build/coverage/data.vm").write_bytes(
                    gzip.decompress(base64.b64decode(measured[1]))
                )
            else:
                print(line.rstrip("\r\n"), flush=True)
        timer.cancel()
    print(
        f"test VM: {'passed' if code == 0 else 'FAILED'} after {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return code


def kernel() -> tuple[Path, Path]:
    """Debian's newest stock kernel, unpacked: its image and its modules."""
    tree = BUILD / "kernel"
    if not list(tree.glob("boot/vmlinuz-*")):
        if _which("apt-get") is None:
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


def _base(modules: Path) -> Path:
    """All of the guest's root but the project itself, as a cpio archive; made again when anything
    in it is another.
    """
    venv, prefix = ROOT / ".venv", Path(sys.base_prefix)
    library = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    packages = sorted(
        f"{e.name} {e.stat().st_mtime_ns}"
        for e in os.scandir(venv / library / "site-packages")
        if e.name != HOOK
    )
    state = [sys.version, str(modules), *packages, Path(__file__).read_text()]
    state += [f"{add.__module__} {Path(add.__code__.co_filename).read_text()}" for add in ADDED]
    state.append(f"{lvm_root.given()} {Path(lvm_root.__file__).read_text()}")
    key = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    image = BUILD / f"base-{key}.cpio"
    if image.exists():
        return image
    for old in BUILD.glob("base-*"):
        old.unlink()
    tree = BUILD / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    _copy(venv, tree)
    _copy(prefix / library, tree, top_only=prefix == Path("/usr"))
    other = lvm_root.given()
    tools = [tool for tool in TOOLS if other is None or tool not in lvm_root.PROGRAMS]
    programs = [Path(found).resolve() for tool in tools if (found := _which(tool))]
    programs.append(_python(tree))
    if other is not None:
        lvm_root.place(other, tree, LINKS)
    objects = [*programs, *(path for path in tree.rglob("*.so*") if path.is_file())]
    for path in [*programs, *_libraries(objects)]:
        _place(path, tree / str(path).lstrip("/"))
    _place(Path(_which("busybox") or ""), tree / "bin/busybox")
    for name in ("sh", "modprobe", "sleep", "sync", "cat", "ls", "mkdir", "env", "dd", "wc", "rm"):
        link = tree / "bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to("busybox")
    for link, target in LINKS.items() if other is None else ():
        if not (tree / "usr/sbin" / link).exists():
            (tree / "usr/sbin" / link).symlink_to(target)
    _modules(modules, tree)
    for add in ADDED:
        add(tree)
    for folder in ("proc", "sys", "dev", "tmp", "run", "var", "etc"):
        (tree / folder).mkdir(exist_ok=True)
    (tree / "etc/passwd").write_text("root:x:0:0:root:/tmp:/bin/sh\n")
    where = ["-s", tree, "-p", "/", tree]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "compileall",
            "-q",
            "-j",
            "0",
            "--invalidation-mode",
            "unchecked-hash",
            *where,
        ],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _pack(tree, image)
    shutil.rmtree(tree)
    return image


def _python(tree: Path) -> Path:
    """The interpreter itself; the links that lead to it from the virtual environment are made in
    the guest.
    """
    path = ROOT / ".venv/bin/python"
    while path.is_symlink():
        link = tree / str(path).lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.readlink(path))
        path = path.parent / os.readlink(path)
    return path


def _project(image: Path, arguments: list[str]) -> None:
    tree = BUILD / "project"
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            _place(ROOT / name, tree / str(ROOT / name).lstrip("/"))
    for hook in (ROOT / ".venv").rglob(HOOK):
        _place(hook, tree / str(hook).lstrip("/"))
    environ = " ".join(f"{name}={os.environ[name]}" for name in ("CI",) if name in os.environ)
    words = " ".join("'" + argument.replace("'", "'\\''") + "'" for argument in arguments)
    python = ROOT / ".venv/bin/python"
    init = tree / "init"
    init.write_text(
        INIT.format(
            modules=" ".join(MODULES),
            start=lvm_root.START if lvm_root.given() else "",
            root=ROOT,
            python=python,
            arguments=words,
            environ=environ,
        )
    )
    init.chmod(0o755)
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-s", tree, "-p", "/", tree],
        check=False,
        env=_no_bytecode_ban(),
    )
    _pack(tree, image)
    shutil.rmtree(tree)


def _no_bytecode_ban() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _copy(source: Path, tree: Path, top_only: bool = False) -> None:
    """A folder to the same path in the guest, without what tests do not use."""

    def skipped(folder: str, names: list[str]) -> set[str]:
        within = folder[len(str(source)) :]
        unused = {
            name for name in names if SKIPPED.search(f"{within}/{name}") or name == "__pycache__"
        }
        return unused | (
            {"site-packages"} if source.name.startswith("python3") and not within else set()
        )

    shutil.copytree(
        source, tree / str(source).lstrip("/"), symlinks=True, ignore=skipped, dirs_exist_ok=True
    )


def _libraries(objects: list[Path]) -> set[Path]:
    found = set()
    for path in objects:
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        found |= {Path(word) for word in re.findall(r"(?:=> |^\s+)(/\S+)", listed, re.MULTILINE)}
    return {path for path in found if not str(path).startswith(str(BUILD))}


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(source, target)


def _modules(modules: Path, tree: Path) -> None:
    """The modules of MODULES and all that they need, by depmod's list."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        module, _, others = line.partition(":")
        needs[module] = others.split()
    by_name = {Path(module).name.split(".ko")[0].replace("_", "-"): module for module in needs}
    wanted = {by_name[name] for name in MODULES}
    wanted |= {other for module in wanted for other in needs[module]}
    target = tree / "lib/modules" / modules.name
    for module in wanted:
        _place(modules / module, target / module)
    target.joinpath("modules.dep").write_text(
        "".join(f"{m}: {' '.join(needs[m])}\n" for m in sorted(wanted))
    )


def _pack(tree: Path, image: Path) -> None:
    names = subprocess.run(
        ["find", ".", "-print0"], cwd=tree, capture_output=True, check=True
    ).stdout.replace(b"\0", b"\n")
    with open(image.with_suffix(".new"), "wb") as out:
        busybox = _which("busybox") or "busybox"
        subprocess.run(
            [busybox, "cpio", "-o", "-H", "newc"],
            cwd=tree,
            input=names,
            stdout=out,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    image.with_suffix(".new").rename(image)


def _which(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

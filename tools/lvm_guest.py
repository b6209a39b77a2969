# SPDX-License-Identifier: GPL-2.0-or-later
"""The root file system of the guest of lvm_vm.py, as cpio archives: one of what it is made of, kept
until anything in that is another, and one of the project, made for each run.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import lvm_root

ROOT = Path(__file__).resolve().parent.parent
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
    r"|config-\d[^/]*|site-packages/[^/]*mypyc[^/]*\.so|ruff[^/]*|torch[^/]*|[^/]*_with_fuzzer\.so|libclang_rt[^/]*|sparsebak-coverage.pth|distutils-precedence.pth)(/|$)|\.(a|pyi|h|exe)$"
)
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
echo "sparsebak-vm: begins"
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


def base(build: Path, modules: Path) -> Path:
    """All of the guest's root but the project itself, with the kernel's ``modules``; made again
    when anything in it is another.
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
    image = build / f"base-{key}.cpio"
    if image.exists():
        return image
    for old in build.glob("base-*"):
        old.unlink()
    tree = build / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    _copy(venv, tree)
    _copy(prefix / library, tree, top_only=prefix == Path("/usr"))
    other = lvm_root.given()
    tools = [tool for tool in TOOLS if other is None or tool not in lvm_root.PROGRAMS]
    programs = [Path(found).resolve() for tool in tools if (found := which(tool))]
    programs.append(_python(tree))
    if other is not None:
        lvm_root.place(other, tree, LINKS)
    objects = [*programs, *(path for path in tree.rglob("*.so*") if path.is_file())]
    for path in [*programs, *_libraries(objects, build)]:
        _place(path, tree / str(path).lstrip("/"))
    _place(Path(which("busybox") or ""), tree / "bin/busybox")
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


def project(build: Path, arguments: list[str], modules: Path) -> Path:
    """The project, and what the guest runs with it: Python with ``-m`` and these arguments."""
    image, tree = build / "project.cpio", build / "project"
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
            modules=" ".join(_by_name(modules)),
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
    return image


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


def _libraries(objects: list[Path], build: Path) -> set[Path]:
    """Shared libraries of programs, but those below ``build``."""
    found = set()
    for path in objects:
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        found |= {Path(word) for word in re.findall(r"(?:=> |^\s+)(/\S+)", listed, re.MULTILINE)}
    return {path for path in found if not str(path).startswith(str(build))}


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(source, target)


def _needs(modules: Path) -> dict[str, list[str]]:
    """What each module of a kernel needs, by depmod's list."""
    lines = (modules / "modules.dep").read_text().splitlines()
    return {module: others.split() for module, _, others in (line.partition(":") for line in lines)}


def _by_name(modules: Path) -> dict[str, str]:
    """Those of MODULES that are not built into the kernel, and their files."""
    names = {
        Path(module).name.split(".ko")[0].replace("_", "-"): module for module in _needs(modules)
    }
    built_in = (modules / "modules.builtin").read_text().replace("_", "-")
    return {name: names[name] for name in MODULES if f"/{name}.ko" not in built_in}


def _modules(modules: Path, tree: Path) -> None:
    """The modules of MODULES and all that they need."""
    needs = _needs(modules)
    wanted = set(_by_name(modules).values())
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
        busybox = which("busybox") or "busybox"
        subprocess.run(
            [busybox, "cpio", "-o", "-H", "newc"],
            cwd=tree,
            input=names,
            stdout=out,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    image.with_suffix(".new").rename(image)


def which(program: str) -> str | None:
    """Where a program is, those for root included."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")

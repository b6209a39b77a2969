# SPDX-License-Identifier: GPL-2.0-or-later
"""The house rules that a machine can check: who may import whom, one file for each service and
command, sizes.
"""

import ast
import os
import random
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_vm import cli as vm_cli
from dom0_agent.rpc.heads import SERVICES
from tests.kit import Site, change, fill
from tools import audit, audited
from tools.audit import imported

ROOT = Path(__file__).parent.parent.parent
DOM0_LIBRARIES = {"cryptography", "zstandard", "qubesadmin"}


def modules(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("dom0_agent", "backup_vm"),
        ("backup_vm", "dom0_agent"),
        ("wire", "dom0_agent"),
        ("wire", "backup_vm"),
        ("common", "dom0_agent"),
        ("common", "backup_vm"),
        ("common", "wire"),
    ],
)
def test_the_two_sides_meet_only_through_wire(package: str, forbidden: str) -> None:
    for path in modules(package):
        assert forbidden not in imported(path), path


def test_dom0_uses_only_what_is_packaged_for_it() -> None:
    allowed = set(sys.stdlib_module_names) | DOM0_LIBRARIES | {"dom0_agent", "wire", "common"}
    for path in audit.modules():
        assert imported(path) <= allowed, (path, imported(path) - allowed)
    assert audit.closure(modules("dom0_agent")) <= set(audit.modules())


def inside(folder: str) -> set[Path]:
    return set((ROOT / "dom0_agent" / folder).rglob("*.py"))


def test_no_call_reaches_the_administrators_side() -> None:
    assert not audit.reachable() & inside("admin")


def test_what_a_call_imports_by_name_is_a_service() -> None:
    """Else what can be reached could not be read off the imports."""
    for path in audit.reachable():
        for call in calls(path, "import_module", "__import__"):
            assert path.name == "dispatch.py", path
            assert ast.unparse(call.args[0]).startswith("f'dom0_agent.rpc.services.{")


def test_a_call_asks_qubesd_in_one_place() -> None:
    asking = ROOT / "dom0_agent/targets/qubesd.py"
    reached = audit.reachable()
    assert {path for path in reached if "qubesadmin" in imported(path)} == {
        ROOT / "dom0_agent/qubesd.py"
    }
    assert {path for path in reached if "dom0_agent.qubesd" in audit.imports(path)} == {asking}
    users = {path for path in reached if "dom0_agent.targets.qubesd" in audit.imports(path)}
    assert {path.name for path in users} == {"restore.py", "__init__.py"}


def calls(path: Path, *names: str) -> Iterator[ast.Call]:
    """Calls of functions of these names, however they are reached."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in names:
                yield node


WRITERS = {
    ("directory.py", "snapshot", "open"),  # a snapshot
    ("reflink.py", "_copy", "setxattr"),  # of a snapshot
    ("reflink.py", "_changed", "setxattr"),
    ("directory.py", "whole_or_absent", "unlink"),
    ("directory.py", "remove", "unlink"),
    ("file.py", "_copy", "truncate"),
    ("file.py", "_copy_range", "copy_file_range"),
    ("file.py", "_copy_range", "pwrite_all"),
    ("flags.py", "_set_flags", "ioctl"),  # of a snapshot that is still empty
    ("metadata_snapshot.py", "_write_mark", "pwrite"),  # whose it is, in dom0's state
    ("metadata_snapshot.py", "_read_mark", "ftruncate"),
    ("metadata_snapshot.py", "__enter__", "lock"),
}
"""Everything in sources that writes, by module, function and what it calls."""
WRITING = {
    "pwrite", "pwritev", "write", "writev", "write_text", "write_bytes", "pwrite_all",
    "write_synced", "truncate", "ftruncate", "posix_fallocate", "copy_file_range", "sendfile",
    "unlink", "remove",
    "rename", "replace", "link", "symlink", "rmdir", "rmtree", "mknod", "mkfifo", "touch",
    "setxattr", "removexattr", "chmod", "fchmod", "chown", "fchown", "utime", "lock",
}  # fmt: skip
MODES = {"w", "wb", "w+b", "r+", "r+b", "x", "xb", "x+b", "a", "ab", "a+b"}
FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE"}
LVM = {
    "lvs", "lvcreate", "lvchange", "lvremove", "dmsetup", "thin_delta", "thin_dump",
}  # fmt: skip
ZFS = {
    ("zfs", "list"), ("zfs", "get"), ("zfs", "send"), ("zpool", "sync"),
    ("zfs", "snapshot"), ("zfs", "clone"), ("zfs", "destroy"),
}  # fmt: skip
"""Commands of ZFS that sources run; what is destroyed is named by ours, which tests/zfs tries."""


def writes(path: Path) -> Iterator[tuple[str, str]]:
    """Function and call, for each call in a module that can change a file."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            words = {getattr(one, "attr", "") for one in ast.walk(node)}
            texts = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}
            opens = name == "open" and (words & FLAGS or texts & MODES)
            of_os = ast.unparse(node.func).startswith("os.")
            # text.replace has two arguments; a pool's remove is a command of LVM
            on_text = not of_os and (name == "remove" or (name == "replace" and len(node.args) > 1))
            sets_flags = name == "ioctl" and "SETFLAGS" in ast.unparse(node)
            if opens or sets_flags or (name in WRITING and not on_text):
                yield function.name, name


def test_sources_write_nothing_but_snapshots() -> None:
    found = {(path.name, *one) for path in inside("sources") for one in writes(path)}
    assert found == WRITERS


def test_sources_know_nothing_of_targets() -> None:
    assert not audit.closure(inside("sources")) & inside("targets")


def test_sources_run_no_command_that_changes_a_volume() -> None:
    """Thin volumes are snapshotted, activated and removed there (ours alone), never merged,
    resized, renamed or made.
    """
    words = {
        node.value
        for path in inside("sources")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    commands = {word for word in words if word.startswith(("lv", "vg", "pv")) and word.isalpha()}
    assert (commands - {"lv"}) | (words & LVM) == LVM
    assert "--snapshot" in words and not words & {"--merge", "--virtualsize", "--thin"}


def test_sources_run_no_command_of_zfs_that_changes_a_volume() -> None:
    """Volumes are listed, snapshotted and sent there, and clones of ours made and removed; nothing
    is rolled back, received, renamed or set.
    """
    found = set()
    for path in inside("sources"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call | ast.List | ast.Tuple):
                listed = node.args if isinstance(node, ast.Call) else node.elts
                words = [one.value if isinstance(one, ast.Constant) else None for one in listed]
                if words and words[0] in ("zfs", "zpool"):
                    found.add((words[0], words[1]))
    assert found == ZFS


OPENED: list[str] = []
"""Paths opened to be written while anything is in ``WATCHED``."""
WATCHED: list[Path] = []


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if WATCHED and event == "open" and isinstance(arguments[2], int):
        path, _, flags = arguments
        if isinstance(path, str | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            OPENED.append(os.fspath(path))


def test_backup_and_monitor_open_only_snapshots_for_writing(site: Site) -> None:
    """What the code says, tried: of all that is opened to be written below a pool."""
    sys.addaudithook(watch)
    fill(site.image(), 1 << 20)
    WATCHED.append(site.pool)
    try:
        for number in range(3):
            site.backup()
            change_unseen(site, number)
            site.monitor()
    finally:
        WATCHED.clear()
    below = [Path(path) for path in OPENED if Path(path).is_relative_to(site.pool)]
    store = site.pool / ".sparsebak"
    assert len(below) >= 3 and all(path.is_relative_to(store) for path in below), below


def change_unseen(site: Site, number: int) -> None:
    """The qube writes, which is none of our doing."""
    pool, WATCHED[:] = WATCHED[:], []
    change(site.image(), random.Random(number), resize=False)
    WATCHED[:] = pool


def test_what_handles_bytes_of_a_backup_vm_is_declared() -> None:
    found = {str(path.relative_to(ROOT)) for path in audit.modules() if audit.names_untrusted(path)}
    assert found <= set(audited.UNTRUSTED), found - set(audited.UNTRUSTED)
    assert all((ROOT / name).is_file() for name in audited.UNTRUSTED)


def test_the_numbers_in_docs_are_those_of_the_audit() -> None:
    """Within a twentieth: they are there to be read, not to be kept up with every commit."""
    measured = {title: audit.measure(paths)[0] for title, paths in audit.numbers().items()}
    measured |= {title: audit.measure(audit.part(title))[0] for title in audited.PARTS}
    page = (ROOT / "docs/security.md").read_text()
    written: dict[str, int] = {}
    for heading in (
        "| what | lines of code |",
        "| what it is for | lines of code |",
    ):
        table = page.partition(heading)[2].partition("\n\n")[0]
        rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
        written |= {name.strip(): int(count.replace(",", "")) for name, count in rows}
    assert written.keys() == measured.keys()
    for name, count in written.items():
        assert abs(count - measured[name]) <= measured[name] / 20, (name, count, measured[name])
    (said,) = re.findall(r"dom0 runs .*\.\n", (ROOT / "README.md").read_text())
    three = [written[name] for name in audit.numbers() if not name.startswith("of that")]
    assert [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", said)[1:]] == three


def test_what_a_call_can_reach_is_divided_into_parts() -> None:
    parts = [path for title in audited.PARTS for path in audit.part(title)]
    assert len(parts) == len(set(parts)) and set(parts) == audit.reachable()


def test_every_room_is_in_the_audit() -> None:
    rooms = {str(path.parent.relative_to(ROOT)) for path in audit.modules()}
    assert rooms == set(audited.ROOMS)


def test_every_service_has_its_file_and_its_module() -> None:
    files = {path.name.removeprefix("sparsebak.") for path in (ROOT / "qubes-rpc").iterdir()}
    assert files == set(SERVICES)
    for service in SERVICES:
        assert (ROOT / "dom0_agent/rpc/services" / f"{service.lower()}.py").exists()
        assert (ROOT / "qubes-rpc" / f"sparsebak.{service}").stat().st_mode & stat.S_IXUSR


def test_every_service_is_in_the_policy_and_denied_at_its_end() -> None:
    lines = (ROOT / "policy/80-sparsebak.policy").read_text().splitlines()
    rules = [line.split() for line in lines if line and not line.startswith("#")]
    for service in SERVICES:
        mine = [rule for rule in rules if rule[0] == f"sparsebak.{service}"]
        assert mine[0][4] == ("ask" if service == "Restore" else "allow")
        assert [(rule[2], rule[3], rule[4]) for rule in mine[-2:]] == [
            ("@anyvm", "@anyvm", "deny"),
            ("@anyvm", "@adminvm", "deny"),
        ]


def test_every_command_has_its_module() -> None:
    """Or its package."""
    folder = ROOT / "backup_vm/cli"
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    found = packages | {path.stem for path in folder.glob("*.py")} - {
        "__init__",
        "context",
        "keeping",
        "options",
        "pack_size",
        "reading",
        "removing",
        "spbk_assemble",
        "writing",
    }
    assert found == set(vm_cli.COMMANDS)


def test_no_module_is_long() -> None:
    for path in modules("common", "dom0_agent", "wire", "backup_vm", "tests", "bench", "tools"):
        assert len(path.read_text().splitlines()) <= 350, path


def test_dom0_and_vm_install_into_separate_trees(tmp_path: Path) -> None:
    for target, theirs, others in (
        ("install-dom0", "dom0_agent", "backup_vm"),
        ("install-vm", "backup_vm", "dom0_agent"),
    ):
        folder = tmp_path / target
        subprocess.run(
            ["make", "-s", target, f"DESTDIR={folder}"], cwd=ROOT, check=True, capture_output=True
        )
        library = folder / "usr/lib/sparsebak"
        assert (
            (library / theirs).is_dir()
            and (library / "wire").is_dir()
            and not (library / others).exists()
        )
    assert not (tmp_path / "install-dom0/usr/lib/sparsebak/dom0_agent/admin/settings").exists()
    assert (
        tmp_path / "install-dom0/etc/qubes-rpc/sparsebak.Restore"
    ).stat().st_mode & 0o777 == 0o755


def test_the_agent_runs_without_the_package_of_settings_and_with_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from dom0_agent.admin.cli import main; "
    )
    library = tmp_path / "usr/lib/sparsebak"
    run = [sys.executable, "-c", code + "sys.exit(main(sys.argv[1:]))", str(library)]
    for target, known in (("install-dom0", False), ("install-dom0-settings", True)):
        subprocess.run(["make", "-s", target, f"DESTDIR={tmp_path}"], cwd=ROOT, check=True)
        listed = subprocess.run(
            [*run, "--help"], cwd="/", capture_output=True, text=True, check=True
        )
        words = {line.split()[0] for line in listed.stdout.splitlines() if line.strip()}
        assert ("settings" in words) == known and "volumes" in words
        done = subprocess.run(
            [*run, "settings", "--help"], cwd="/", capture_output=True, text=True, check=False
        )
        assert done.returncode == (0 if known else 2)
        assert known or "install sparsebak-dom0-settings" in done.stderr


def test_every_package_is_installed() -> None:
    """By the list in pyproject.toml, which says what ``pip install`` takes."""
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [path.parent for path in modules("common", "wire", "dom0_agent", "backup_vm")]
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(listed) == sorted(found)

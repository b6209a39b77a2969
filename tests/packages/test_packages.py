# SPDX-License-Identifier: GPL-2.0-or-later
"""The packages as they are built: what is in them, with which owners and modes, and what
they need.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml
from setuptools.config.pyprojecttoml import read_configuration

from backup_vm import cli as vm
from dom0_agent.admin import cli as dom0
from tests.conftest import cannot
from wire import VERSION

ROOT = Path(__file__).parent.parent.parent
DOM0_NEEDS = {"python3", "python3-cryptography", "python3-zstandard"}
VM_NEEDS = DOM0_NEEDS | {"python3-construct", "python3-numpy", "python3-xxhash", "python3-rich"}


def build(kind: str, needed: str, folder: Path) -> list[Path]:
    if shutil.which(needed) is None:
        cannot(f"{needed} is not installed")
    clean = folder / "clean"
    subprocess.run(["git", "clone", "-q", ROOT, clean], check=True)
    done = subprocess.run(
        ["make", "-s", kind], cwd=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted((clean / "build" / kind).glob(f"*.{kind}"))


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = build("rpm", "rpmbuild", tmp_path_factory.mktemp("rpm"))
    return {path.name.split(f"-{VERSION}")[0]: path for path in found}


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (package,) = build("deb", "dh", tmp_path_factory.mktemp("deb"))
    return package


def listed(package: Path) -> dict[str, tuple[str, str, str]]:
    """Mode, owner and group by path."""
    fields = "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]"
    raw = subprocess.run(
        ["rpm", "-qp", "--qf", fields, package], capture_output=True, text=True, check=True
    ).stdout
    return {
        name: (mode, owner, group)
        for mode, owner, group, name in (line.split() for line in raw.splitlines())
    }


def needs(package: Path) -> set[str]:
    raw = subprocess.run(
        ["rpm", "-qp", "--requires", package], capture_output=True, text=True, check=True
    ).stdout
    return {
        line.split()[0]
        for line in raw.splitlines()
        if not line.startswith(("rpmlib", "/", "config("))
    }


def test_what_dom0_gets(rpms: dict[str, Path]) -> None:
    files = listed(rpms["sparsebak-dom0"])
    assert needs(rpms["sparsebak-dom0"]) == DOM0_NEEDS
    services = [name for name in files if name.startswith("/etc/qubes-rpc/")]
    assert len(services) == 9 and all(
        files[name] == ("-rwxr-xr-x", "root", "root") for name in services
    )
    (policy,) = (name for name in files if name.startswith("/etc/qubes/policy.d/"))
    assert policy.endswith("/80-sparsebak.policy")  # after an administrator's own
    assert files[policy] == ("-rw-r--r--", "root", "root")
    assert {owner for _, *owners in files.values() for owner in owners} == {"root"}
    for folder in ("/etc/sparsebak", "/var/lib/sparsebak"):
        assert files[folder] == ("drwx------", "root", "root")
    modules = [
        name for name in files if name.endswith(".py") and not name.startswith("/usr/share/doc/")
    ]
    assert all(re.match(r"/usr/lib/sparsebak/(common|wire|dom0_agent)/", name) for name in modules)
    assert all(files[name] == ("-rw-r--r--", "root", "root") for name in modules)
    assert not [
        name for name in files if "backup_vm" in name or "site-packages" in name or "tests" in name
    ]
    assert {
        "/usr/lib/systemd/system/sparsebak-monitor.timer",
        "/usr/bin/sparsebak-agent",
        "/usr/lib/sparsebak/policy/79-sparsebak-4.2.policy",
        "/usr/share/applications/sparsebak-backup.desktop",
    } <= files.keys()


def test_settings_are_a_package_of_their_own(rpms: dict[str, Path]) -> None:
    files = listed(rpms["sparsebak-dom0-settings"])
    assert needs(rpms["sparsebak-dom0-settings"]) == {"sparsebak-dom0", "python3-qubesadmin"}
    assert not files.keys() & listed(rpms["sparsebak-dom0"]).keys()
    assert {
        "/usr/lib/sparsebak/dom0_agent/admin/cli/settings.py",
        "/usr/lib/sparsebak/dom0_agent/admin/settings/collecting.py",
        "/usr/lib/systemd/system/sparsebak-settings.timer",
    } <= files.keys()
    assert all(
        owned == ("-rw-r--r--", "root", "root") or owned[0][0] == "d" for owned in files.values()
    )


def test_what_the_backup_vm_gets(rpms: dict[str, Path]) -> None:
    files = listed(rpms["sparsebak-vm"])
    assert needs(rpms["sparsebak-vm"]) == VM_NEEDS
    assert not [name for name in files if "dom0_agent" in name or "policy" in name]
    services = {name: files[name] for name in files if name.startswith("/etc/qubes-rpc/")}
    called = {f"/etc/qubes-rpc/sparsebak.{name}" for name in ("Open", "Read")}
    assert services == dict.fromkeys(called, ("-rwxr-xr-x", "root", "root"))
    assert {"/usr/lib/systemd/system/sparsebak-backup.timer", "/usr/bin/sparsebak"} <= files.keys()
    assert "/usr/lib/sysusers.d/sparsebak-upkeep.conf" in files
    assert files["/etc/qubes/post-install.d/50-sparsebak.sh"][0] == "-rwxr-xr-x"
    assert all(owner == group == "root" for _, owner, group in files.values())


def test_it_runs_as_it_is_packaged(rpms: dict[str, Path], tmp_path: Path) -> None:
    for name, module in (
        ("sparsebak-dom0", "dom0_agent.admin.cli"),
        ("sparsebak-vm", "backup_vm.cli"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        cpio = subprocess.run(["rpm2cpio", rpms[name]], capture_output=True, check=True).stdout
        command = (
            ["busybox", "cpio", "-idm"]
            if shutil.which("cpio") is None
            else ["cpio", "-idm", "--quiet"]
        )
        subprocess.run(command, cwd=folder, input=cpio, capture_output=True, check=True)
        code = (
            f"import sys; sys.path.insert(0, sys.argv[1]); from {module} import main;"
            " sys.exit(main(['--help']))"
        )
        command = [sys.executable, "-c", code, str(folder / "usr/lib/sparsebak")]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "usage: sparsebak" in done.stdout


def test_the_debian_package(deb: Path) -> None:
    package = deb
    raw = subprocess.run(
        ["dpkg-deb", "-c", package], capture_output=True, text=True, check=True
    ).stdout
    files = {line.split()[5].lstrip("."): tuple(line.split()[:2]) for line in raw.splitlines()}
    programs = [f"/etc/qubes-rpc/sparsebak.{name}" for name in ("Open", "Read")]
    for name in ("/usr/bin/sparsebak", *programs, "/etc/qubes/post-install.d/50-sparsebak.sh"):
        assert files[name] == ("-rwxr-xr-x", "root/root")
    assert "/usr/lib/sparsebak/backup_vm/cli/__init__.py" in files and not [
        name for name in files if "dom0_agent" in name
    ]
    fields = subprocess.run(
        ["dpkg-deb", "-f", package, "Depends"], capture_output=True, text=True, check=True
    ).stdout
    assert {name.split()[0] for name in fields.strip().split(", ")} == VM_NEEDS


def test_one_version_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    project = read_configuration(ROOT / "pyproject.toml")["project"]
    debian = re.match(r"sparsebak \((.*)-\d+\)", (ROOT / "debian/changelog").read_text())
    builder = (ROOT / "version").read_text().strip()
    newest = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert debian and newest
    assert project["version"] == debian[1] == newest[1] == builder == VERSION
    for parser in (vm.parser, dom0.parser):
        with redirect_stdout(StringIO()) as said, pytest.raises(SystemExit):
            parser().parse_args(["--version"])
        assert said.getvalue().split()[-1] == VERSION


def test_packages_have_the_projects_version(rpms: dict[str, Path]) -> None:
    assert {path.name.split("-")[-2] for path in rpms.values()} == {VERSION}


def test_the_same_sources_make_the_same_packages(
    rpms: dict[str, Path], deb: Path, tmp_path: Path
) -> None:
    """In another folder, at another time."""
    first = {path.name: path.read_bytes() for path in [*rpms.values(), deb]}
    for kind in ("rpm", "deb"):
        (tmp_path / kind).mkdir()
    again = [*build("rpm", "rpmbuild", tmp_path / "rpm"), *build("deb", "dh", tmp_path / "deb")]
    assert {path.name: path.read_bytes() for path in again} == first


def test_byte_code_is_the_packages_own(rpms: dict[str, Path]) -> None:
    """Whoever runs them writes none beside it that would be left behind."""
    for name in ("sparsebak-dom0", "sparsebak-dom0-settings", "sparsebak-vm"):
        files = listed(rpms[name])
        ours = {path for path in files if path.startswith("/usr/lib/sparsebak/")}
        modules = [path for path in ours if path.endswith(".py")]
        compiled = {path for path in ours if path.endswith(".pyc")}
        assert len(modules) == len(compiled)
        said = subprocess.run(
            ["rpm", "-qp", "--scripts", rpms[name]], capture_output=True, text=True, check=True
        ).stdout
        assert "compileall" not in said


def test_a_package_takes_nothing_of_another_along(rpms: dict[str, Path], tmp_path: Path) -> None:
    """Both sides on one machine share modules; byte code that another Python wrote is nobody's."""
    if os.geteuid() != 0:
        cannot("to install packages needs root")
    for folder in ("bin", "dev", "usr/bin", "tmp"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dev/null").touch()
    shutil.copy(shutil.which("busybox") or cannot("busybox is not installed"), tmp_path / "bin")
    for program in ("bin/sh", "usr/bin/rm", "usr/bin/rmdir", "usr/bin/find"):
        (tmp_path / program).symlink_to("/bin/busybox")

    def rpm(*words: str | Path) -> str:
        command = ["rpm", "--root", tmp_path, "--dbpath", "/var/lib/rpm", "--nodeps", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        warnings = [line for line in done.stderr.splitlines() if "warning" in line]
        # rpm 6 tells of itself
        assert set(warnings) <= {"warning: private mounts in chroot not implemented"}
        return done.stdout

    names = ["sparsebak-dom0-settings", "sparsebak-dom0", "sparsebak-vm"]
    library = tmp_path / "usr/lib/sparsebak"
    rpm("-i", *(rpms[name] for name in names))
    for module in ("wire", "backup_vm/cli", "dom0_agent", "dom0_agent/admin/settings"):
        (library / module / "__pycache__" / "x.cpython-399.pyc").touch()
    while names:
        assert [rpm("-V", name) for name in names] == [""] * len(names)
        rpm("-e", names.pop(0))
    assert not library.exists()


def test_qubes_builder_finds_what_it_names() -> None:
    named = yaml.safe_load((ROOT / ".qubesbuilder").read_text())
    specs = [spec for side in ("host", "vm") for spec in named[side]["rpm"]["build"]]
    assert {f"{spec}.in" for spec in specs} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "rpm").glob("*.spec.in")
    }
    assert all((ROOT / folder / "control").exists() for folder in named["vm"]["deb"]["build"])
    assert (ROOT / "rel").read_text().strip().isdigit()

"""The house rules that a machine can check: who may import whom, one file for each service and
command, sizes.
"""

import stat
import subprocess
from pathlib import Path

import pytest

from backup_vm import cli as vm_cli
from dom0_agent.rpc.dispatch import SERVICES
from tools.audit import imported

ROOT = Path(__file__).parent.parent.parent
DOM0_LIBRARIES = {"construct", "cryptography", "zstandard", "qubesadmin"}


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
    import sys

    allowed = set(sys.stdlib_module_names) | DOM0_LIBRARIES | {"dom0_agent", "wire", "common"}
    for path in modules("dom0_agent", "wire", "common"):
        assert imported(path) <= allowed, (path, imported(path) - allowed)


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
    found = {path.stem for path in (ROOT / "backup_vm/cli").glob("*.py")} - {
        "__init__",
        "context",
        "options",
        "spbk_assemble",
    }
    assert found == set(vm_cli.COMMANDS)


def test_no_module_is_long() -> None:
    for path in modules("common", "dom0_agent", "wire", "backup_vm", "tests", "bench"):
        assert len(path.read_text().splitlines()) <= 420, path


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
    assert (
        tmp_path / "install-dom0/etc/qubes-rpc/sparsebak.Restore"
    ).stat().st_mode & 0o777 == 0o755

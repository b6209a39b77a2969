# SPDX-License-Identifier: GPL-2.0-or-later
"""The Salt formula, applied by Salt as Qubes OS has it: ``make test-salt QUBES=FOLDER``.

Salt, its modules and states for qubes (``qvm.*``), their configuration, qubesadmin and its programs
are the real ones; qubesd is the stand-in.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import elsewhere
from tests.kit import PASSPHRASE
from tests.system.acts import fire
from tests.system.machine import Machine
from tests.system.world import ARCHIVE, BACKUP_VM, World, built

SALT, SOURCES = os.environ.get("SALT_LIBRARY"), os.environ.get("QUBES_SOURCES")
LIBRARY = "/opt/salt"
CALL = f"""#!/bin/sh
export PYTHONPATH={LIBRARY}
exec /usr/bin/python3 -c "from salt.scripts import salt_call; salt_call()" --local "$@"
"""
PROGRAM = """#!/usr/bin/python3 -I
import sys
from qubesadmin.tools.{} import main
sys.exit(main())
"""
METADATA = "Metadata-Version: 2.1\nName: qubesadmin\nVersion: 4.3\n"
PROGRAMS = ("qvm-check", "qvm-create")
MINION = "file_client: local\nfile_roots: {base: [/srv/salt]}\nhash_type: sha256\n"
CHOSEN = {"sparsebak": {"backup-vm": BACKUP_VM, "template": "fedora"}}


def source(name: str) -> Path:
    """A checkout, with or without ``qubes-`` before its name."""
    return next(
        path for end in (f"qubes-{name}", name) if (path := Path(SOURCES or "", end)).is_dir()
    )


def bring_salt(machine: Machine) -> None:
    machine.binds[Path(SALT or "")] = LIBRARY
    (machine.root / "usr/bin/salt-call").write_text(CALL)
    (machine.root / "usr/bin/salt-call").chmod(0o755)
    (machine.root / "etc/salt").mkdir()
    (machine.root / "etc/salt/minion").write_text(MINION)


@pytest.fixture(scope="module")
def world(memory: Path, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Machines with Salt and without sparsebak; there is no backup VM yet."""
    if not SALT or not SOURCES:
        elsewhere("no Salt is named, so that the formula was not applied: make test-salt")
    made = World(pool, memory / "salt", built(tmp_path_factory.mktemp("packages")))
    try:
        del made.qubes[BACKUP_VM]
        for machine in (made.dom0, made.vm):
            bring_salt(machine)
        root = made.dom0.root
        library = root / "usr/lib/python3/dist-packages/qubesadmin"
        shutil.rmtree(library)  # the stand-in
        shutil.copytree(source("core-admin-client") / "qubesadmin", library)
        installed = library.with_name("qubesadmin-4.3.dist-info")
        installed.mkdir()
        (installed / "METADATA").write_text(METADATA)
        for name in PROGRAMS:
            (root / "usr/bin" / name).write_text(PROGRAM.format(name.replace("-", "_")))
            (root / "usr/bin" / name).chmod(0o755)
        for repository in ("mgmt-salt-base", "mgmt-salt-dom0-qvm"):
            for folder in ("_modules", "_states", "_utils"):
                if (source(repository) / folder).is_dir():
                    shutil.copytree(
                        source(repository) / folder, root / "srv/salt" / folder, dirs_exist_ok=True
                    )
        (root / "etc/salt/minion.d").mkdir()
        settings = source("mgmt-salt") / "etc/salt/minion.dom0.conf"
        shutil.copy(settings, root / "etc/salt/minion.d/minion.dom0.conf")
        # Salt runs qvm-create as the user, who may ask qubesd.
        for folder in (memory, memory / "salt", made.socket.parent):
            folder.chmod(0o755)
        made.socket.chmod(0o666)
        made.dom0.boot()
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def as_usual() -> None:
    """Here there is no backup VM to begin with."""


def apply(machine: Machine, state: str, *, test: bool = False) -> dict[str, Any]:
    """What became of each state, by its name; none may have failed."""
    options = ["--out=json", "--log-level=error"]
    words = ["state.apply", state, f"pillar={json.dumps(CHOSEN)}", *(["test=True"] if test else [])]
    said = machine.run("salt-call", *options, *words)
    done = json.loads(said[said.index("{") :])["local"]
    assert isinstance(done, dict), said
    assert all(one["result"] is not False for one in done.values()), said
    return {name.split("_|-")[1]: one for name, one in done.items()}


def changed(done: dict[str, Any]) -> set[str]:
    return {name for name, one in done.items() if one["changes"]}


def test_one_command_sets_up_dom0(world: World) -> None:
    world.install_in_dom0(*(world.packages[n] for n in ("dom0", "dom0-settings", "dom0-salt")))
    world.dom0.run("salt-call", "--log-level=error", "saltutil.sync_all")
    done = apply(world.dom0, "sparsebak")
    made = world.qubes[BACKUP_VM]
    assert made.klass == "AppVM" and made.tags == {"created-by-dom0", "sparsebak-vm"}
    wanted = {"label": "gray", "template": "fedora", "include_in_backups": "False"}
    assert {name: made.properties[name][2] for name in wanted} == wanted
    assert {name for name, qube in world.qubes.items() if "sparsebak" in qube.tags} == {
        "fedora", "work", "web",
    }  # fmt: skip
    units = [name for name in done if name.startswith("sparsebak-") and "." in name]
    assert len(units) == 5
    for unit in units:
        assert world.dom0.shown(unit, "ActiveState") == "active", unit
        assert world.dom0.shown(unit, "UnitFileState") == "enabled", unit
    assert (world.dom0.root / "var/lib/sparsebak/catalog.json").exists()


def test_a_second_time_it_changes_nothing(world: World) -> None:
    before = {name: (set(qube.tags), dict(qube.properties)) for name, qube in world.qubes.items()}
    for test in (False, True):
        assert changed(apply(world.dom0, "sparsebak", test=test)) == set()
    after = {name: (set(qube.tags), dict(qube.properties)) for name, qube in world.qubes.items()}
    assert after == before


def test_what_was_changed_by_hand_is_put_right(world: World) -> None:
    world.qubes["work"].tags.discard("sparsebak")
    world.dom0.run("systemctl", "disable", "--now", "sparsebak-check.timer")
    assert changed(apply(world.dom0, "sparsebak")) == {"sparsebak-setup", "sparsebak-check.timer"}
    assert "sparsebak" in world.qubes["work"].tags


def test_the_template_gets_the_package(world: World) -> None:
    """From a repository, as a distribution has it: twice, the second time without a change."""
    world.power("Start")
    shutil.copytree(Path(__file__).parent.parent.parent / "salt", world.vm.root / "srv/salt")
    repository = world.disk / "repository"
    repository.mkdir()
    shutil.copy(world.packages["vm"], repository)
    with open(repository / "Packages", "wb") as index:
        command = ["dpkg-scanpackages", "--multiversion", "."]
        subprocess.run(command, cwd=repository, stdout=index, check=True, stderr=subprocess.DEVNULL)
    sources = world.vm.root / "etc/apt/sources.list.d/sparsebak.list"
    sources.write_text("deb [trusted=yes] file:/disk/repository ./\n")
    world.vm.run("apt-get", "update", "-q", "-o", f"Dir::Etc::sourcelist={sources.name}", ok=False)
    done = apply(world.vm, "sparsebak.install")
    assert changed(done) == {"sparsebak-vm"}
    assert changed(apply(world.vm, "sparsebak.install")) == set()


def test_then_what_is_typed_by_hand_makes_a_backup(world: World) -> None:
    """As docs/qubes.md has it after the formula; and the timers find all in order."""
    secret = world.shared / "passphrase"
    secret.write_bytes(PASSPHRASE + b"\n")
    words = f"archive add laptop --caller {BACKUP_VM} --passphrase-file {secret}"
    world.dom0.run("sparsebak-agent", *words.split())
    world.vm.run("sh", "-c", "mountpoint -q /mnt || mount /mnt")
    world.vm.run("chown", "user", "/mnt")
    world.vm.run(*f"sparsebak init {ARCHIVE} --label laptop --default".split(), user="user")
    world.vm.run("sparsebak", "backup", user="user")
    assert world.dom0.shown("sparsebak-agent.service", "ActiveState") == "active"
    for name in ("sparsebak-monitor", "sparsebak-check"):
        result = fire(world.dom0, f"{name}.timer")
        assert result == "success", world.dom0.journal(name)

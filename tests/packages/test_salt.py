# SPDX-License-Identifier: GPL-2.0-or-later
"""The Salt states, rendered as Salt does it: by jinja, then YAML. tests/system/test_salt.py applies
them by Salt itself.
"""

import json
from pathlib import Path
from typing import Any

import jinja2
import yaml

ROOT = Path(__file__).parent.parent.parent
STATES = ROOT / "salt/sparsebak"
ODD = 'backup": {x: 1} #'


def rendered(name: str, given: dict[str, str]) -> Any:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters["json"] = json.dumps
    salt = {"pillar.get": lambda key, default: given if key == "sparsebak" else default}
    return yaml.safe_load(environment.from_string((STATES / name).read_text()).render(salt=salt))


def test_the_backup_vm_is_the_one_that_pillar_names() -> None:
    made = rendered("create.sls", {})["sparsebak-backup-vm"]["qvm.vm"]
    assert made[:2] == [{"name": "backup"}, {"present": [{"label": "gray"}]}]
    made = rendered("create.sls", {"backup-vm": "keeper", "template": "debian-13"})
    assert made["sparsebak-backup-vm"]["qvm.vm"][:2] == [
        {"name": "keeper"},
        {"present": [{"label": "gray"}, {"template": "debian-13"}]},
    ]


def test_a_name_stays_a_name() -> None:
    command = rendered("configure.sls", {"backup-vm": ODD})["sparsebak-setup"]["cmd.run"]
    assert {"env": [{"SPARSEBAK_BACKUP_VM": ODD}]} in command
    assert {"name": 'sparsebak-agent setup "$SPARSEBAK_BACKUP_VM"'} in command


def test_every_unit_that_is_enabled_is_there() -> None:
    states = rendered("configure.sls", {})
    enabled = {name for name, state in states.items() if "service.running" in state}
    there = {path.name for path in (ROOT / "systemd").glob("dom0*/*") if path.suffix != ".service"}
    assert enabled == there


def test_all_that_dom0_needs_is_one_state() -> None:
    for name in rendered("init.sls", {})["include"]:
        assert (STATES / f"{name.partition('.')[2]}.sls").exists()
    assert rendered("install.sls", {}) == {"sparsebak-vm": {"pkg.installed": []}}

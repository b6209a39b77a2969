# SPDX-License-Identifier: GPL-2.0-or-later
"""The settings files in docs: right as they stand, and with every option there is."""

from pathlib import Path

import pytest

from backup_vm import config as vm
from backup_vm.errors import UsageError
from backup_vm.jobs.keep_rules import KEYS, UNLIMITED
from dom0_agent import config as dom0
from dom0_agent.admin.qubes_options import QubesOptions

DOCS = Path(__file__).parent.parent.parent.parent / "docs"


def test_every_setting_of_the_backup_vm_is_explained() -> None:
    path = DOCS / "config.toml"
    found = vm.load(path)
    assert found.texts.keys() == set(vm.TEXTS)
    assert (
        found.pruning.rules_for("vault", "private").last == UNLIMITED
        and found.pruning.until_free == "10%"
    )
    assert (
        found.pruning.rules_for("work", "root").daily == 90
        and found.pruning.rules_for("x", "y").daily == 30
    )
    text = path.read_text()
    for key in (*vm.TEXTS, *vm.SWITCHES, *KEYS, "keep_default", "after_backup", "until_free"):
        assert f"{key} = " in text, key


def test_every_setting_of_the_agent_is_explained() -> None:
    path = DOCS / "agent.toml"
    found = dom0.load(path)
    names = ["work/private", "vault/private", "mail/private"]
    assert [volume.name for volume in found.volumes] == names
    text = path.read_text()
    own = set(dom0.Config._fields) - {"path", "volumes", "allow_restore", "qubes"}
    for key in own | set(QubesOptions.__dataclass_fields__) | set(dom0.Pool._fields):
        assert f"{key} = " in text, key
    assert "[[allow_restore]]" in text and "[qubes]" in text


@pytest.mark.parametrize("variable", ["HOME", "XDG_CONFIG_HOME"])
def test_a_home_that_is_no_folder(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv(variable, "/dev/null")
    with pytest.raises(UsageError, match="the settings, /dev/null/") as refused:
        vm.load(None)
    assert refused.value.hint.startswith(f"set {variable} to a folder")
    assert "--config FILE (/dev/null for none)" in refused.value.hint
    assert vm.load(Path("/dev/null")) == vm.Config()


TOP = (*vm.TEXTS, *vm.SWITCHES, "prune")
RULES = (*KEYS, "keep_default", "after_backup", "until_free", "qubes", "max_removed", "min_age")


@pytest.mark.parametrize("head", ["", "[prune]\n", "[prune.qubes.work]\n"])
def test_a_value_of_another_type_is_named(head: str, tmp_path: Path) -> None:
    path, refused = tmp_path / "config.toml", 0
    for key in (RULES if head == "[prune]\n" else KEYS) if head else TOP:
        for value in ("1", "-1", "1.5", "true", '"x"', '""', "[1]", "{a = 1}", "1979-05-27"):
            path.write_text(f"{head}{key} = {value}\n")
            try:
                vm.load(path)
            except UsageError as error:
                text = str(error).partition("config.toml: ")[2]
                assert key in text and "\n" not in text and "literal" not in text, (value, text)
                refused += 1
    assert refused > 30

# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 has written down of its qubes, on a disk that cannot read it any more: it is written
down again, as when it is damaged.
"""

from pathlib import Path

import pytest

from dom0_agent.admin.tags import READER_TAG
from dom0_agent.catalog import open_catalog
from dom0_agent.config import load
from tests.faultfs import Fault, FaultFS
from tests.qubes.kit import QubesSite
from tests.qubes.qubesd import Qubesd
from tests.qubes.test_setup import agent
from wire.status import Refused


@pytest.fixture
def failing(btrfs_folder: Path, qubesd: Qubesd, faultfs: FaultFS, tmp_path: Path) -> QubesSite:
    """A machine whose state is on such a disk."""
    (btrfs_folder / "site").mkdir()
    (btrfs_folder / "site/dom0").symlink_to(faultfs.path)
    (tmp_path / "note").write_text("of dom0")
    return QubesSite(btrfs_folder / "site", qubesd, (tmp_path / "note",))


@pytest.mark.parametrize("operation", ["open", "read"])
def test_what_cannot_be_read_is_written_again(
    failing: QubesSite, faultfs: FaultFS, operation: str
) -> None:
    failing.take_down()
    for path, command, name in (
        ("catalog.json", "volumes", "work/private"),
        ("identities.json", "monitor", "work/private"),
        ("settings/work.settings", "settings collect", "work/settings"),
        ("settings/dom0.config", "settings collect", "dom0/config"),
    ):
        written = (faultfs.real / path).stat().st_ino
        faultfs.fail(Fault(operation, "EIO", path=path))
        if path.endswith(".json"):
            with pytest.raises(Refused, match="cannot be read: Input/output error; run:"):
                open_catalog(load(failing.config))
        again = agent(failing, *command.split())
        assert (faultfs.real / path).stat().st_ino != written
        faultfs.fail()  # another file is on another place of the disk
        assert again == 0 or agent(failing, *command.split()) == 0
        assert name in {one.name for one in open_catalog(load(failing.config)).volumes()}


def test_what_was_restored_and_cannot_be_read_is_told(
    failing: QubesSite, faultfs: FaultFS, capsys: pytest.CaptureFixture[str]
) -> None:
    failing.take_down()
    (faultfs.real / "restored").mkdir()
    for name in ("work.settings", "dom0.config"):
        document = (faultfs.real / "settings" / name).read_bytes()
        (faultfs.real / "restored" / name).write_bytes(document)
    faultfs.fail(Fault("read", "EIO", path="restored/*"))
    machine = failing.root / "machine"
    for words in (["show", "work"], ["show", "dom0"], ["extract", str(machine)]):
        capsys.readouterr()
        assert agent(failing, "settings", *words) == 1
        said = capsys.readouterr().err
        assert "/restored/" in said and "Input/output error; restore it again" in said
    assert not machine.exists()


def test_a_disposable_whose_file_cannot_be_read_goes_by_its_tag(
    failing: QubesSite, faultfs: FaultFS
) -> None:
    failing.take_down()
    left = failing.qubesd.add("disp7", "DispVM", "vm-pool")
    left.tags |= {READER_TAG}
    (faultfs.real / "opening").mkdir()
    (faultfs.real / "opening/disp7").write_text(left.uuid)
    faultfs.fail(Fault("read", "EIO", path="opening/*"))
    assert agent(failing, "monitor", "-q") == 0
    assert "disp7" not in failing.qubesd.qubes and not list((faultfs.real / "opening").iterdir())

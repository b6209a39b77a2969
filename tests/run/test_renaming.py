# SPDX-License-Identifier: GPL-2.0-or-later
"""A volume that is renamed is the same volume: in dom0's state, in the archive, and for a
restore.
"""

import json
import random
import shutil
from pathlib import Path

import pytest

from backup_vm import cli as vm_cli
from backup_vm.agent.call import RefusedError
from backup_vm.errors import Exit
from backup_vm.volumes import stored_volumes
from common.text import session_name
from dom0_agent.admin import cli
from dom0_agent.tracking import identities
from dom0_agent.tracking.state import known_volumes
from tests.kit import GRAIN, PASSPHRASE, Site, change, fill
from wire.messages import KIND_RECORD
from wire.records import open_record
from wire.status import Code, Refused


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path / "site", volumes=("work/private", "vault/private"))
    for at, name in enumerate(made.volumes):
        fill(made.image(name), 20 * GRAIN, at)
    made.backup()
    return made


def agent(site: Site, *words: str) -> int:
    return cli.main(["--config", str(site.config), *words])


def rename_in_the_configuration(site: Site, old: str, new: str) -> None:
    """What an administrator does whose machine is called something else now."""
    text = site.config.read_text()
    site.config.write_text(
        text.replace(f'qube = "{old}"', f'qube = "{new}"').replace(
            f'"{old}-private', f'"{new}-private'
        )
    )
    site.image(f"{old}/private").rename(site.image(f"{new}/private"))


def rename(site: Site, old: str = "work", new: str = "play") -> int:
    rename_in_the_configuration(site, old, new)
    return agent(site, "rename", old, new)


def named(site: Site) -> dict[str, int]:
    """Volumes of the archive, as the key tells them, and how many sessions each has."""
    with site.open() as archive:
        found = stored_volumes(archive, site.keys(archive), {})
    return {volume.name: len(volume.sessions) for volume in found}


def told(site: Site) -> dict[str, int]:
    """The same as dom0 tells them."""
    with site.open() as archive:
        known = {one.volume_id.hex(): (one.qube, one.volume) for one in site.listed(archive)}
        found = stored_volumes(archive, None, known)
    return {volume.name: len(volume.sessions) for volume in found}


def make(site: Site, name: str, seed: int) -> None:
    """A volume of that name that was not there."""
    text = site.config.read_text()
    site.config.write_text(
        text + f'[[volume]]\nqube = "{name}"\nvolume = "private"\npool = "p"\n'
        f'vid = "{name}-private.img"\n'
    )
    fill(site.image(f"{name}/private"), 20 * GRAIN, seed)


def test_it_keeps_its_history_and_its_chunks(site: Site) -> None:
    before = site.contents()
    assert rename(site) == 0
    assert told(site) == {"play/private": 1, "vault/private": 1}
    change(site.image("play/private"), random.Random(1), resize=False)
    done = {f"{one.qube}/{one.volume}": one for one in site.backup().done}
    assert 0 < done["play/private"].stored < len(before) // 2
    assert named(site) == told(site) == {"play/private": 2, "vault/private": 2}
    images = site.images("play/private")
    assert list(images.values()) == [before, site.contents("play/private")]
    assert site.scrubbed() == [] and len(site.snapshots("work/private")) == 1
    site.restore(0, "play/private")
    assert site.contents("play/private") == before


def test_a_session_that_was_begun_before_is_committed_after(site: Site) -> None:
    with site.open(True) as archive:
        entry = next(one for one in site.listed(archive) if one.qube == "work")
        offer = site.agent(archive).snapshot("work", "private", entry.session, 1, 0)
        assert rename(site) == 0
        agent_now = site.agent(archive)
        again = agent_now.snapshot("play", "private", entry.session, 1, 0)
        assert again.session == offer.session
        with agent_now.extract("play", "private", offer.session, 0) as reply:
            frames = dict(reply.frames())
        agent_now.commit("play", "private", offer.session)
        record = open_record(frames[KIND_RECORD], site.keys(archive))
    assert (record.qube, record.identity) == ("play", "work")


def test_another_one_of_the_name_has_nothing_of_it(site: Site) -> None:
    """Neither history nor place for a restore: what was vault's goes where vault is now."""
    secret = site.contents("vault/private")
    assert rename(site, "vault", "safe") == 0
    make(site, "vault", 7)
    mine = site.contents("vault/private")
    for session in (0, -1):
        with pytest.raises(RefusedError) as refused:
            site.restore(session, "vault/private", to="vault/private")
        assert refused.value.refusal == Code.WRONG_VOLUME
    site.backup()
    assert site.contents("vault/private") == mine
    assert told(site) == {"safe/private": 2, "vault/private": 1, "work/private": 2}
    assert sorted(known_volumes(site.state)) == [
        ("_2.vault", "private"),
        ("vault", "private"),
        ("work", "private"),
    ]
    site.restore(0, "safe/private")
    assert site.contents("safe/private") == secret
    with pytest.raises(RefusedError) as refused:
        site.restore(0, "vault/private", to="safe/private")
    assert refused.value.refusal == Code.WRONG_VOLUME


def test_one_that_got_the_name_of_another_can_be_renamed_itself(site: Site) -> None:
    assert rename(site) == 0
    make(site, "work", 7)
    site.backup()
    before = site.contents()
    assert rename(site, "work", "third") == 0
    assert told(site) == {"play/private": 2, "third/private": 1, "vault/private": 2}
    change(site.image("third/private"), random.Random(1), resize=False)
    site.restore(0, "work/private", to="third/private")
    assert site.contents("third/private") == before


def test_what_may_be_restored_elsewhere_goes_by_present_names(site: Site) -> None:
    assert rename(site, "vault", "safe") == 0
    make(site, "vault", 7)
    site.backup()
    allow = '[[allow_restore]]\nfrom = "vault/private"\nto = "work/private"\n'
    text = site.config.read_text()
    site.config.write_text(text.replace("[[pool]]", allow + "[[pool]]", 1))
    with pytest.raises(RefusedError) as refused:
        site.restore(0, "safe/private", to="work/private")
    assert refused.value.refusal == Code.WRONG_VOLUME
    site.restore(0, "vault/private", to="work/private")
    assert site.contents() == site.contents("vault/private")


def test_what_was_backed_up_meanwhile_is_kept_apart(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    rename_in_the_configuration(site, "work", "play")
    site.backup("play/private", "vault/private")
    assert told(site) == {"play/private": 1, "vault/private": 2, "work/private": 1}
    capsys.readouterr()
    assert agent(site, "rename", "work", "play") == 1
    assert "--yes" in capsys.readouterr().err
    assert agent(site, "rename", "work", "play", "--yes") == 0
    assert "kept as play.old" in capsys.readouterr().out
    site.backup("play/private", "vault/private")
    assert told(site) == {"play.old/private": 1, "play/private": 2, "vault/private": 3}
    assert agent(site, "monitor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["let_go"] == ["play.old/private"]
    assert site.snapshots("play/private") == [] and len(site.snapshots("work/private")) == 1
    assert agent(site, "status") == 0
    assert "sparsebak-agent forget play.old/private" in capsys.readouterr().out
    # Its newest session is none of what is called play now, which the prompt has to say.
    to_play = ["--archive", str(site.archive), "--agent", f"local:{site.config}", "restore"]
    to_play += ["play.old/private", "--to", "play/private", "--yes"]
    before = site.contents("play/private")
    change(site.image("play/private"), random.Random(3), resize=False)
    assert vm_cli.main(to_play) == Exit.AGENT
    assert "does not know this session as the newest" in capsys.readouterr().err
    with site.open() as archive:
        (gone,) = [one for one in site.listed(archive) if one.name == "play.old/private"]
    assert vm_cli.main([*to_play, "--session", session_name(gone.time)]) == 0
    assert site.contents("play/private") == before
    assert agent(site, "forget", "play.old/private", "--yes") == 0
    assert not (site.state / "volumes/play").exists() and (site.state / "volumes/work").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("vault", "work", "there is a qube vault"),
        ("nobody", "work", "nothing is known of nobody here"),
        ("work", "work", "name two qubes"),
        ("dom0", "work", "name two qubes"),
        ("a/b", "work", "use 1 to 63"),
    ],
)
def test_what_cannot_be_renamed(
    site: Site, old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agent(site, "rename", old, new) == 1
    assert said in capsys.readouterr().err and not identities.place(site.state).exists()


def test_one_that_is_not_there_gets_no_history(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    rename_in_the_configuration(site, "work", "play")
    assert agent(site, "rename", "work", "plya") == 1
    assert "there is no qube plya" in capsys.readouterr().err


def test_who_is_who_survives_the_loss_of_what_says_it(site: Site) -> None:
    """From the volumes' states, where they were written since."""
    assert rename(site) == 0
    site.backup()
    before = identities.load(site.state).known
    for lose in (identities.place(site.state).unlink, lambda: _damage(site)):
        lose()
        with pytest.raises(RefusedError):  # nobody guesses
            site.restore(0, "play/private")
        with pytest.raises(Refused, match="sparsebak-agent volumes"):
            identities.load(site.state)
        assert agent(site, "volumes") == 0
        after = identities.load(site.state).known
        assert {one: known.name for one, known in after.items()} == {
            one: known.name for one, known in before.items()
        }
        site.backup()
    assert named(site)["play/private"] == 4


def _damage(site: Site) -> None:
    identities.place(site.state).write_bytes(b"{")


def test_after_the_loss_of_all_that_is_known_of_volumes(site: Site) -> None:
    """Only the administrator knows then that both are the same."""
    before = site.contents()
    rename_in_the_configuration(site, "work", "play")
    shutil.rmtree(site.state / "volumes")
    with pytest.raises(RefusedError) as refused:
        site.restore(0, "work/private", to="play/private")
    assert refused.value.refusal == Code.WRONG_VOLUME
    assert agent(site, "rename", "work", "play", "--yes") == 0
    assert agent(site, "rename", "work", "play", "--yes") == 1  # it is called play now
    site.restore(0, "work/private", to="play/private")
    done = {f"{one.qube}/{one.volume}": one.stored for one in site.backup().done}
    assert done["play/private"] == 0 and site.contents("play/private") == before
    assert told(site) == {"play/private": 2, "vault/private": 2}


def test_a_new_dom0_knows_it_again(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """From the newest record of each volume, with two of one name."""
    assert rename(site, "vault", "safe") == 0
    make(site, "vault", 7)
    before = site.contents("safe/private")
    site.backup()
    keys, secret = site.root / "keys", site.root / "passphrase"
    secret.write_bytes(PASSPHRASE)
    assert vm_cli.main(["--archive", str(site.archive), "keys", "-o", str(keys)]) == 0
    shutil.rmtree(site.state)
    words = ("keys", "import", "again", str(keys), "--caller", "backup-vm")
    assert agent(site, *words, "--passphrase-file", str(secret)) == 0
    done = {f"{one.qube}/{one.volume}": one.stored for one in site.backup().done}
    assert done == {"safe/private": 0, "vault/private": 0, "work/private": 0}
    assert told(site) == {"safe/private": 3, "vault/private": 2, "work/private": 3}
    change(site.image("safe/private"), random.Random(3), resize=False)
    site.restore(0, "safe/private")  # of before it was renamed
    assert site.contents("safe/private") == before


def test_a_machine_with_a_qube_of_that_first_name_is_told(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two machines had a vault, and one of them is called otherwise now."""
    assert rename(site, "vault", "safe") == 0
    site.backup()
    keys, secret = site.root / "keys", site.root / "passphrase"
    secret.write_bytes(PASSPHRASE)
    assert vm_cli.main(["--archive", str(site.archive), "keys", "-o", str(keys)]) == 0
    shutil.rmtree(site.state)
    (site.state / "volumes/vault/private").mkdir(parents=True)  # it has a history of its own
    words = ("keys", "import", "again", str(keys), "--caller", "backup-vm")
    capsys.readouterr()
    assert agent(site, *words, "--passphrase-file", str(secret)) == 0
    assert "    vault/private (in the archive: safe/private)\n" in capsys.readouterr().out

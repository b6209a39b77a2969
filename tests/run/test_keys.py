# SPDX-License-Identifier: GPL-2.0-or-later
"""Passphrases and recovery keys that are added, changed and removed, in dom0 and in the archive."""

import random
from pathlib import Path

import pytest

from backup_vm import cli
from backup_vm.archive.parameters import Parameters
from backup_vm.errors import AgentError, WrongKeyError
from dom0_agent.admin import cli as agent_cli
from dom0_agent.config import load
from dom0_agent.keyring import Keyring
from tests.kit import PASSPHRASE, Site, fill
from wire import slots


@pytest.fixture
def made(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(slots, "SCRYPT_LOG_N", 10)
    monkeypatch.setenv("SPARSEBAK_AGENT", f"local:{site.config}")
    monkeypatch.setenv("SPARSEBAK_ARCHIVE", str(site.archive))
    fill(site.image(), 200_000)
    site.backup()
    return site


def keys(site: Site, *words: str, passphrase: bytes | None = None) -> int:
    given = []
    if passphrase is not None:
        (site.root / "new").write_bytes(passphrase + b"\n")
        given = ["--passphrase-file", str(site.root / "new")]
    code = agent_cli.main(["--config", str(site.config), "keys", *words, *given])
    if code == 0 and words[0] != "list":
        assert cli.main(["keys", "--refresh"]) == 0
    return code


def opens(site: Site, secret: bytes) -> bool:
    with site.open() as archive:
        parameters: Parameters = archive.parameters
    try:
        return parameters.keys(secret) is not None
    except WrongKeyError:
        return False


def test_passphrases_come_and_go(made: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(made, "add", "tests", passphrase=b"second") == 0
    assert opens(made, b"second") and opens(made, PASSPHRASE)
    assert keys(made, "change", "tests", passphrase=b"third") == 1  # which of the two?
    assert keys(made, "change", "tests", "--slot", "0", passphrase=b"third") == 0
    assert opens(made, b"third") and not opens(made, PASSPHRASE)
    assert keys(made, "change", "tests", "--slot", "1", passphrase=b"x") == 1  # the recovery key
    capsys.readouterr()
    assert keys(made, "list", "tests") == 0
    assert capsys.readouterr().out == "0: passphrase\n1: recovery key\n2: passphrase\n"
    assert keys(made, "remove", "tests", "--slot", "2", "--yes") == 0
    assert not opens(made, b"second") and opens(made, b"third")
    assert keys(made, "remove", "tests", "--slot", "1") == 1  # nobody to ask
    assert keys(made, "remove", "tests", "--slot", "1", "--yes") == 0
    assert keys(made, "remove", "tests", "--slot", "0") == 1  # the last one
    assert keys(made, "remove", "tests", "--slot", "7") == 1
    assert opens(made, b"third")
    made.backup()  # nobody had to type anything


def test_a_new_recovery_key(made: Site, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert keys(made, "new-recovery", "tests") == 1  # nobody to ask
    assert "--yes" in capsys.readouterr().err
    assert keys(made, "show-recovery", "tests") == 1  # which replaced it, unasked
    assert "sparsebak-agent keys new-recovery tests" in capsys.readouterr().err
    assert keys(made, "new-recovery", "tests", "--yes") == 0
    first = next(
        line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    ")
    )
    assert opens(made, first.encode())
    assert keys(made, "new-recovery", "tests", "--yes") == 0
    second = next(
        line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    ")
    )
    assert opens(made, second.encode()) and not opens(made, first.encode())
    wrong = second.replace(second[0], "A" if second[0] != "A" else "B", 1)
    with pytest.raises(slots.BadRecoveryKey, match="group 1"):
        slots.parse_recovery(wrong)


def test_what_cannot_be(made: Site, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(14):
        assert keys(made, "add", "tests", passphrase=b"more%d" % number) == 0
    assert keys(made, "add", "tests", passphrase=b"too many") == 1
    assert "at most 16" in capsys.readouterr().err
    assert keys(made, "list", "nothing") == 1
    made.add_archive("open", made.root / "open", sealed=False)
    assert keys(made, "add", "open", passphrase=b"seal it") == 1
    assert "is open: its key has been readable in the archive" in capsys.readouterr().err


def test_passphrases_however_they_are_written(
    made: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    composed, apart = "caf\u00e9".encode(), "cafe\u0301".encode()
    assert keys(made, "add", "tests", passphrase=apart) == 0
    assert opens(made, composed) and opens(made, apart) and opens(made, b"\xef\xbb\xbf" + composed)
    capsys.readouterr()
    for bad in ("caf\u00e9".encode("utf-16"), b"a\0b", b"caf\xe9", b""):
        assert keys(made, "add", "tests", passphrase=bad) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "passphrase" in error and str(made.root / "new") in error


def test_a_sealed_archive_that_says_it_is_open(
    made: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever writes the store puts an archive of his own in its place; nothing that has a
    passphrase takes it.
    """
    secret = made.root / "secret"
    secret.write_bytes(PASSPHRASE + b"\n")
    forged = Site(made.root / "forged", sealed=False)
    fill(forged.image(), 200_000)
    forged.backup()
    image = made.root / "image"
    given = ["--passphrase-file", str(secret)]
    for words in (["list"], ["verify"], ["assemble", "work/private", "-o", str(image)]):
        assert cli.main(["--archive", str(forged.archive), *words, *given]) == 12, words
        assert "says that it is open" in capsys.readouterr().err and not image.exists()
        assert cli.main(["--archive", str(made.archive), *words, *given]) == 0
        image.unlink(missing_ok=True)
    assert cli.main(["--archive", str(forged.archive), "keys", "--refresh"]) != 0


def test_keys_and_state_are_for_their_owner_alone(made: Site) -> None:
    folders = [path for path in made.state.rglob("*") if path.is_dir()]
    files = [path for path in made.state.rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in [made.state, *folders])
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files) and files


def test_no_key_is_in_a_log(made: Site, capfd: pytest.CaptureFixture[str]) -> None:
    (archive,) = Keyring(load(made.config).state_dir)
    assert keys(made, "add", "tests", passphrase=b"second secret") == 0
    assert keys(made, "change", "tests", "--slot", "9", passphrase=b"second secret") == 1
    assert cli.main(["-v", "backup"]) == 0 and cli.main(["-v", "verify"]) == 0
    said = "".join(capfd.readouterr())
    for secret in ("second secret", PASSPHRASE.decode(), archive.master().hex()):
        assert secret not in said
    assert not Path("core").exists()


def test_another_backup_vm_has_the_archive(
    made: Site,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one before has it no more; the next backup is none of all."""
    assert agent_cli.main(["--config", str(made.config), "archive", "caller", "tests", "new"]) == 0
    made.disturb(random.Random(1))
    with pytest.raises(AgentError):
        made.backup()
    (done,) = made.backup(agent=made.agent(caller="new")).done
    assert not done.full and list(made.images().values())[-1] == made.contents()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    init = ["init", str(made.archive), "--label", "tests", "--repair", "--default"]
    assert cli.main(["--caller", "new", *init]) == 0
    settings = tmp_path / ".config/sparsebak/config.toml"
    assert f'archive = "{made.archive}"' in settings.read_text()
    for words in (["nobody", "new"], ["tests", "../new"]):
        assert agent_cli.main(["--config", str(made.config), "archive", "caller", *words]) == 1
    assert "no archive is labelled nobody" in capsys.readouterr().err

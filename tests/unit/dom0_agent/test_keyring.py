# SPDX-License-Identifier: GPL-2.0-or-later
"""Archives and states of volumes that are damaged, known twice, or gone; the commands about
them.
"""

import builtins
import getpass
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm import cli as vm_cli
from backup_vm.agent.call import RefusedError
from dom0_agent.admin import archives, cli
from dom0_agent.admin.cli import archive as command
from dom0_agent.config import load
from dom0_agent.keyring import Keyring, check
from tests.faultfs import Fault, FaultFS
from tests.kit import GRAIN, PASSPHRASE, Site, fill
from wire.chunks import SUITES, ChunkIds
from wire.slots import KIND_PASSPHRASE, KIND_RECOVERY
from wire.status import Code, Refused


@pytest.fixture
def keyring(site: Site) -> Keyring:
    return Keyring(load(site.config).state_dir)


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.code in (Code.INTERNAL, Code.BUSY, Code.NO_ARCHIVE)
    return str(caught.value)


def test_a_damaged_archive_is_told(keyring: Keyring) -> None:
    (one,) = keyring
    (one.directory / "key").write_bytes(b"short")
    assert "key is damaged" in refused(one.keys)
    (one.directory / "archive.json").write_text("{}")
    assert "is damaged" in refused(lambda: list(keyring))
    with pytest.raises(ValueError, match="chunk size"):
        archives.add(keyring, "x", "y", 1, 12345, None)
    with pytest.raises(ValueError, match="suite"):
        archives.add(keyring, "x", "y", 3, 1 << 17, None)


def test_what_is_no_file_of_ours_is_damaged_too(keyring: Keyring) -> None:
    """As a damaged file system may show it: nothing waits for it, or reads it without end."""
    (one,) = keyring
    for name, action in (("key", one.keys), ("archive.json", lambda: list(keyring))):
        (one.directory / name).unlink()
        os.mkfifo(one.directory / name)
        assert "is damaged" in refused(action)


@pytest.mark.parametrize("bit", [0, 255])
def test_a_key_with_one_wrong_bit_seals_nothing(site: Site, bit: int) -> None:
    """It would seal as well as the right one, and no passphrase would open that."""
    fill(site.image(), 3 * GRAIN)
    site.backup()
    (one,) = Keyring(load(site.config).state_dir)
    key = bytearray((one.directory / "key").read_bytes())
    key[bit // 8] ^= 1 << bit % 8
    (one.directory / "key").write_bytes(key)
    fill(site.image(), 3 * GRAIN, 1)
    with pytest.raises(AssertionError, match="the agent failed"):
        site.backup()
    without_check = one._replace(key_check="")  # the volume ids show it, too
    (one.directory / "archive.json").write_bytes(archives.dump(without_check))
    with pytest.raises(AssertionError, match="the agent failed"):
        site.backup()
    assert len(site.images()) == 1


def test_a_sealed_archive_is_not_open_by_one_wrong_digit(site: Site) -> None:
    (one,) = Keyring(load(site.config).state_dir)
    path = one.directory / "archive.json"
    path.write_text(path.read_text().replace('"mode": 0', '"mode": 1'))
    with pytest.raises(RefusedError):
        site.agent().enroll("tests")


@pytest.mark.parametrize("name", ["key", "archive.json"])
def test_a_damaged_archive_can_be_taken_over_again(
    site: Site, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(site.image(), 3 * GRAIN)
    site.backup()
    (one,) = Keyring(load(site.config).state_dir)
    told, secret = site.root / "told.keys", site.root / "secret"
    secret.write_bytes(PASSPHRASE)
    assert vm_cli.main(["--archive", str(site.archive), "keys", "-o", str(told)]) == 0
    (one.directory / name).write_bytes(bytes(32))
    words = ["keys", "import", "tests", str(told), "--caller", "backup-vm", "--passphrase-file"]
    assert cli.main(["--config", str(site.config), *words, str(secret)]) == 0
    assert one.directory.with_name(f".{one.id.hex()}.damaged").is_dir()
    fill(site.image(), 3 * GRAIN, 1)
    site.backup()
    assert len(site.images()) == 2


@pytest.mark.parametrize("name", ["key", "archive.json"])
def test_an_archive_that_cannot_be_read_is_a_damaged_one(
    tmp_path: Path, faultfs: FaultFS, name: str
) -> None:
    """A bad sector: it can be taken over again, too."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/dom0").symlink_to(faultfs.path)
    (one,) = Keyring(load(Site(tmp_path / "site").config).state_dir)
    master = one.master()
    faultfs.fail(Fault("read", "EIO", path=f"archives/{one.id.hex()}/{name}"))
    archives.keep(Keyring(one.directory.parent.parent), one, master)
    faultfs.fail()
    assert one.directory.with_name(f".{one.id.hex()}.damaged").is_dir()
    assert archives.is_sound(one.directory)


def test_an_archive_is_kept_once(keyring: Keyring) -> None:
    (one,) = keyring
    other, master = one._replace(label="other"), one.master()
    assert "known here already" in refused(lambda: archives.keep(keyring, other, master))
    archives.remove(one)
    assert list(keyring) == [] and keyring.by_label("tests") is None
    left_over = one.directory.with_name(f".{one.id.hex()}.tmp")
    left_over.mkdir()
    (left_over / "key").write_bytes(b"half")
    archives.keep(keyring, other, master)
    assert keyring.by_label("other") == other and other.keys() is not None


def test_a_slot_that_was_removed_while_a_passphrase_was_typed_stays_removed(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = site.root / "secret"
    secret.write_bytes(b"another one")

    def typed(path: Path | None) -> bytes:
        assert run(site, "keys", "remove", "tests", "--slot", "0", "--yes") == 0
        assert run(site, "archive", "caller", "tests", "other-vm") == 0
        return b"another one"

    with monkeypatch.context() as patch:
        patch.setattr("dom0_agent.admin.cli.keys.new_passphrase", typed)
        assert run(site, "keys", "add", "tests", "--passphrase-file", str(secret)) == 1
    assert "were changed meanwhile" in capsys.readouterr().err
    assert run(site, "keys", "add", "tests", "--passphrase-file", str(secret)) == 0
    (one,) = Keyring(load(site.config).state_dir)
    assert [slot[0] for slot in one.slots] == [KIND_RECOVERY, KIND_PASSPHRASE]
    assert one.caller == "other-vm"


@pytest.mark.parametrize("operation", ["mkdir", "create", "write", "fsync", "rename"])
def test_an_archive_that_cannot_be_kept_leaves_no_key(
    keyring: Keyring, faultfs: FaultFS, operation: str
) -> None:
    (one,) = keyring
    other = Keyring(faultfs.path)
    new = one._replace(directory=other.place(one.id))
    faultfs.path.joinpath("archives").mkdir()
    for after in range(2 if operation in ("create", "write", "fsync") else 1):
        faultfs.fail(Fault(operation, "ENOSPC", path="archives", after=after))
        with pytest.raises(OSError, match="No space left"):
            archives.keep(other, new, one.master())
        assert not list((faultfs.real / "archives").iterdir())
    faultfs.fail()
    archives.keep(other, new, one.master())
    assert [key.id for key in other] == [one.id]


def run(site: Site, *words: str) -> int:
    return cli.main(["--config", str(site.config), *words])


def test_archives_are_listed_and_removed(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(site, "archive", "list", "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)["archives"]
    assert (
        listed["label"] == "tests"
        and listed["mode"] == "sealed"
        and listed["caller"] == "backup-vm"
    )
    assert run(site, "archive", "list") == 0 and "tests" in capsys.readouterr().out
    assert run(site, "archive", "remove", "other") == 1
    assert run(site, "archive", "remove", "tests") == 1 and "needs --yes" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda _: "something else")
    assert run(site, "archive", "remove", "tests") == 1
    monkeypatch.setattr(builtins, "input", lambda _: "tests")
    assert run(site, "archive", "remove", "tests") == 0
    assert (
        run(site, "archive", "list", "--json") == 0 and '"archives": []' in capsys.readouterr().out
    )


def test_passphrases_are_typed_twice(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wire.slots.SCRYPT_LOG_N", 10)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    typed = iter(["one", "two", "", "same", "same"])
    monkeypatch.setattr(getpass, "getpass", lambda _: next(typed))
    for _ in range(2):
        assert run(site, "archive", "add", "new", "--caller", "vm") == 1
        assert "differ or are empty" in capsys.readouterr().err
    assert run(site, "archive", "add", "new", "--caller", "vm") == 0
    assert "Recovery key" in capsys.readouterr().out
    assert run(site, "archive", "add", "open", "--caller", "vm", "--open", "--json") == 0
    assert json.loads(capsys.readouterr().out)["recovery_key"] is None
    (site.root / "empty").write_text("\n")
    with pytest.raises(cli.UserError, match="first line is empty"):
        command.read_secret(site.root / "empty")


def test_errors_of_the_system_are_one_line(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = [
        PermissionError(13, "Permission denied", "/x"),
        OSError(5, "Input/output error", "/y"),
        OSError(5, "Bare"),
    ]
    for error in (*errors, BrokenPipeError(), KeyboardInterrupt()):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("dom0_agent.admin.cli.archive.load", fail)
        code = {KeyboardInterrupt: 130, BrokenPipeError: 141}.get(type(error), 1)
        assert run(site, "archive", "list") == code
    printed = capsys.readouterr().err.splitlines()
    assert (
        len(printed) == 3 and "run it as the owner or as root" in printed[0] and "/y" in printed[1]
    )


def test_ids_are_made_with_what_is_asked_for_or_with_what_is_faster(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(*_: object) -> bytes:
        time.sleep(0.001)
        return b""

    for name in SUITES.values():
        assert run(site, "archive", "add", name, "--caller", "vm", "--open", "--hash", name) == 0
        assert f"ids by {name}" in capsys.readouterr().out
    monkeypatch.setattr(ChunkIds, "_sha256", slow)
    assert run(site, "archive", "add", "measured", "--caller", "vm", "--open") == 0
    monkeypatch.undo()
    monkeypatch.setattr(ChunkIds, "_blake2b", slow)
    assert run(site, "archive", "add", "again", "--caller", "vm", "--open") == 0
    capsys.readouterr()
    assert run(site, "archive", "list", "--json") == 0
    made = {one["label"]: one["hash"] for one in json.loads(capsys.readouterr().out)["archives"]}
    made.pop("tests")
    assert made == {
        "blake2b": "blake2b",
        "hmac-sha256": "hmac-sha256",
        "measured": "blake2b",
        "again": "hmac-sha256",
    }


@pytest.mark.parametrize(
    ("number", "what"),
    [(None, "format 1, from before"), (1, "format 1, from before"), (3, "format 3")],
)
def test_an_archive_of_another_format_is_told_of_and_makes_way(
    keyring: Keyring, number: int | None, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of format 1 has no number."""
    (one,) = keyring
    master, file = one.master(), one.directory / "archive.json"
    fields = json.loads(file.read_text())
    fields["format"] = number
    if number is None:
        del fields["format"]
    del fields["check"]
    file.write_text(json.dumps({"check": check(fields), **fields}))
    with pytest.raises(Refused, match=f"is an archive of {what}.*(make a new archive|newer one)"):
        list(keyring)
    assert keyring.by_label("tests") is None and what in capsys.readouterr().err
    archives.keep(keyring, one, master)
    assert keyring.by_label("tests") == one


def test_a_key_that_is_not_the_archives_seals_nothing(keyring: Keyring) -> None:
    (one,) = keyring
    key = one.directory / "key"
    raw = key.read_bytes()
    key.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    (one,) = keyring
    with pytest.raises(Refused, match="key is damaged"):
        one.keys()
    key.write_bytes(raw)
    (one,) = keyring
    assert one.master() == raw


@pytest.mark.parametrize("name", ["label", "caller", "mode", "chunk_size", "created", "slots"])
def test_an_archive_whose_file_was_changed_is_damaged(keyring: Keyring, name: str) -> None:
    (one,) = keyring
    file = one.directory / "archive.json"
    fields = json.loads(file.read_text())
    fields[name] = {"slots": ["00"], "created": "3"}.get(name, 3)
    file.write_text(json.dumps(fields))
    with pytest.raises(Refused, match="check does not fit"):
        list(keyring)
    del fields["check"]
    file.write_text(json.dumps(fields))
    with pytest.raises(Refused, match="is damaged"):
        list(keyring)
    assert list(keyring.readable()) == []

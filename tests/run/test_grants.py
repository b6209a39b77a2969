# SPDX-License-Identifier: GPL-2.0-or-later
"""Grants from dom0, and the commands that take them in a passphrase's place."""

import io
import json
import os
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dom0_agent.admin import cli as dom0
from dom0_agent.admin.granting import read_records
from tests.commands import Commands
from tests.kit import GRAIN, Site, change, fill, own_domains
from wire.grants import Grant
from wire.messages import HEADER_SIZE
from wire.records import RECORD_SIZE

BIN = Path(sys.executable).parent


class Granting(Commands):
    """Both sides of one site."""

    def use(self, site: Site) -> None:
        self.site = site
        self.settings(f'archive = "{site.archive}"\nagent = "local:{site.config}"\n')

    def records(self, name: str = "work/private") -> Path:
        path = self.site.root / "records"
        path.unlink(missing_ok=True)
        self.run("records", name, "-o", str(path))
        return path

    def agent(self, *words: str) -> tuple[int, str]:
        self._capsys.readouterr()
        code = dom0.main(["--config", str(self.site.config), *words])
        return code, self._capsys.readouterr().err

    def grant(self, *words: str, name: str = "work/private") -> Path:
        path = self.site.root / "grant"
        path.unlink(missing_ok=True)
        records = ("--records", str(self.records(name)))
        code, err = self.agent("grant", name, *records, "-o", str(path), *words)
        assert code == 0, err
        return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two volumes of three sessions, each a domain of its own; for tests that change nothing."""
    with own_domains():
        yield build(tmp_path_factory.mktemp("granting"), 3)


def build(folder: Path, turns: int) -> Site:
    site = Site(folder / "site", volumes=("work/private", "vault/private"))
    for seed, name in enumerate(site.volumes):
        fill(site.image(name), 20 * GRAIN + 5, seed)
    for turn in range(turns):
        site.backup()
        for name in site.volumes:
            change(site.image(name), random.Random(turn), resize=False)
    return site


@pytest.fixture
def granting(site: Site, capsys: pytest.CaptureFixture[str]) -> Granting:
    granting = Granting(site, capsys)
    granting.use(site)
    return granting


def test_a_grant_opens_its_sessions_and_no_others(granting: Granting) -> None:
    images, target = granting.site.images(), granting.site.root / "out.img"
    names = sorted(images)
    grant = ("--grant", str(granting.grant("--session", names[1])))
    granting.run("assemble", "work/private", "-o", str(target), *grant)  # the newest it is for
    assert target.read_bytes() == images[names[1]]
    for other in (names[0], names[2]):
        error = granting.fails(
            12, "assemble", "work/private", "--session", other, "-o", "x", *grant
        )
        assert f"not for session {other}" in error and names[1] in error
    error = granting.fails(12, "assemble", "vault/private", "-o", "x", *grant)
    assert "not for vault/private" in error and "work/private" in error
    rows = granting.json("verify", "--session", "all", *grant)["sessions"]
    assert [(row["qube"], row["session"], row["ok"]) for row in rows] == [("work", names[1], True)]


def test_every_session_and_several(granting: Granting) -> None:
    names = sorted(granting.site.images())
    for words, expected in (
        (("--all",), names),
        (("--session", names[0], "--session", names[2]), [names[0], names[2]]),
        ((), names[2:]),
    ):
        grant = granting.grant(*words)
        rows = granting.json("verify", "--session", "all", "--grant", str(grant))["sessions"]
        assert [row["session"] for row in rows] == expected
    assert "contradict" in granting.agent("grant", "work", "--all", "--session", "2", "-o", "x")[1]


def test_a_grant_on_standard_input_and_output(
    granting: Granting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By real pipes: no file has it."""
    target, config = granting.site.root / "piped.img", str(granting.site.config)
    records = granting.records().read_bytes()
    words = [BIN / "sparsebak-agent", "--config", config, "grant", "work", "--records", "-"]
    made = subprocess.run([*words, "-o", "-"], input=records, capture_output=True, check=True)
    assert len(Grant.parse(made.stdout).records) == 1 and b"cannot be taken back" in made.stderr
    settings = ("--config", granting.site.root / "config.toml")
    words = [BIN / "sparsebak", *settings, "assemble", "work/private", "-o", target, "--grant", "-"]
    subprocess.run(words, input=made.stdout, check=True)
    assert target.read_bytes() == granting.site.images().popitem()[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no grant")))
    assert "not a grant" in granting.fails(12, "verify", "--grant", "-")


def test_the_file_is_its_owners_and_never_replaced(granting: Granting) -> None:
    before = os.umask(0)
    try:
        path = granting.grant()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    raw, records = path.read_bytes(), str(granting.records())
    code, err = granting.agent("grant", "work", "--records", records, "-o", str(path))
    assert code == 1 and "exists" in err and path.read_bytes() == raw
    link = granting.site.root / "link"
    link.symlink_to(granting.site.root / "elsewhere")
    assert granting.agent("grant", "work", "--records", records, "-o", str(link))[0] == 1
    assert not (granting.site.root / "elsewhere").exists()


def test_the_newest_is_what_dom0_knows_as_that(granting: Granting) -> None:
    """A backup VM that withholds the newest one does not pass off the one before it."""
    names = sorted(granting.site.images())
    records, frame = granting.records(), HEADER_SIZE + RECORD_SIZE
    raw = records.read_bytes()
    records.write_bytes(raw[: 2 * frame] + raw[3 * frame :])
    target = granting.site.root / "refused"
    words = ("grant", "work", "--records", str(records), "-o", str(target))
    code, err = granting.agent(*words)
    assert code == 1 and f"--session {names[1]}" in err and not target.exists()
    assert granting.agent(*words, "--session", names[1])[0] == 0


def test_what_is_wrong_is_said(granting: Granting) -> None:
    records, names = str(granting.records()), sorted(granting.site.images())
    for words, text in (
        (("work", "--records", records, "--session", "1999"), "no session"),
        (("work", "--records", records, "--session", names[0][:4]), "3 sessions"),
        (("vault", "--records", records), "another volume"),
        (("work", "--records", records, "--archive", "other"), "--archive LABEL"),
        (("work",), "sparsebak records work/private"),
        (("wo rk", "--records", records), "1 to 63"),
        (("work", "--records", str(granting.passphrase)), "no records"),
    ):
        code, err = granting.agent("grant", *words, "-o", str(granting.site.root / "none"))
        assert code == 1 and text in err and err.count("\n") == 1, err
    assert not (granting.site.root / "none").exists()


def test_a_grant_for_another_archive_and_sessions_that_are_gone(
    tmp_path: Path, granting: Granting
) -> None:
    site = build(tmp_path, 2)
    granting.use(site)
    grant, names = str(granting.grant("--all")), sorted(site.images())
    other = site.root / "other"
    site.add_archive("other", other)
    error = granting.fails(12, "--archive", str(other), "verify", "--grant", grant)
    assert "another" not in error and "for archive" in error
    granting.run("prune", "work/private", "--session", names[0], "--yes")
    err = granting.run("verify", "work/private", "--grant", grant)[1]
    assert f"work/private {names[0]}, which the grant is for, is not in the archive" in err
    granting.run("delete", "work/private", "--yes")
    granting.fails(1, "verify", "--grant", grant)


def test_volumes_of_the_same_domain_are_named(tmp_path: Path, granting: Granting) -> None:
    """Without Qubes all volumes of an archive are one."""
    root, names = str(tmp_path / "site"), ("work/private", "vault/private")
    code = "import sys; from pathlib import Path; from tests.kit import Site; "
    code += f"Site(Path(sys.argv[1]), volumes={names}).backup()"
    subprocess.run([sys.executable, "-c", code, root], check=True, capture_output=True)
    granting.use(Site(Path(root), make=False))
    words = ("--records", str(granting.records()), "-o", root + "/grant")
    done, err = granting.agent("grant", "work", *words)
    assert done == 0 and "vault/private" in err


def test_a_passphrase_and_a_grant_are_too_much(granting: Granting) -> None:
    with pytest.raises(SystemExit):
        granting.run("verify", "--grant", "x", "--passphrase-file", "y")


def test_files_are_read_with_a_grant(tmp_path: Path, granting: Granting) -> None:
    site = Site(tmp_path / "site")
    granting.use(site)
    content = site.root / "content"
    content.mkdir()
    (content / "note").write_text("what was granted\n")
    with open(site.image(), "wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-d", content, site.image()], check=True)
    site.backup()
    grant = ("--grant", str(granting.grant()))
    found = json.loads(granting.run("files", "ls", "work/private", "/", *grant, "--json")[0])
    assert "/note" in [row["path"] for row in found["files"]]
    out = granting.site.root / "note"
    granting.run("files", "cp", "work/private", "/note", str(out), *grant)
    assert out.read_text() == "what was granted\n"
    assert len(granting.json("files", "history", "work/private", "/note", *grant)["sessions"]) == 1


def test_records_of_damaged_sessions_are_missed_aloud(granting: Granting, tmp_path: Path) -> None:
    site, path = build(tmp_path, 2), tmp_path / "records"
    granting.use(site)
    volume = Grant.parse(granting.grant().read_bytes()).volume_id.hex()
    with site.open() as archive:
        series = archive.sessions()[volume]
        (site.archive / series[0].file).write_bytes(b"x")
    error = granting.run("records", "work/private", "-o", str(path), expect=4)[1]
    assert "is damaged" in error or "cannot be read" in error
    with open(path, "rb") as file:
        assert read_records(file, "it") == [one.record for one in series[1:]]


def test_the_log_tells_of_a_grant_that_there_is(granting: Granting) -> None:
    records, path = str(granting.records()), granting.site.root / "told"
    words = ("grant", "work/private", "--records", records, "-o")
    path.write_text("somebody's")
    code, err = granting.agent(*words, str(path))
    assert code == 1 and "exists" in err and "a grant " not in err
    code, err = granting.agent(*words, str(path.with_name("nowhere") / "told"))
    assert code == 1 and "no grant was made" in err and "a grant was" not in err
    path.unlink()
    code, err = granting.agent(*words, str(path))
    assert code == 0 and "a grant was made, for work/private in " in err


def test_one_that_was_sent_in_part_is_told_of(granting: Granting) -> None:
    command = [BIN / "sparsebak-agent", "--config", granting.site.config, "grant", "work/private"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*command, "--records", granting.records(), "-o", "-"],
            check=False, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode and "a grant may have been sent, for" in done.stderr
    assert "Traceback" not in done.stderr and "was made" not in done.stderr

# SPDX-License-Identifier: GPL-2.0-or-later
"""``-o -``: standard output where what is written can be read from a pipe, else one line."""

import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm import cli
from tests.commands import Commands
from tests.kit import GRAIN, Site, fill

Piped = Callable[..., bytes]


class Pipe(io.TextIOWrapper):
    """Standard output that is a pipe."""

    def __init__(self) -> None:
        self.got = io.BytesIO()
        super().__init__(self.got, "utf-8", write_through=True)


@pytest.fixture
def key(commands: Commands) -> tuple[str, ...]:
    fill(commands.site.image(), 4 * GRAIN)
    commands.site.backup()
    return ("--passphrase-file", str(commands.passphrase))


@pytest.fixture
def piped(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Piped:
    def run(*words: str) -> bytes:
        folder = tmp_path / "empty"
        folder.mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "stdout", pipe := Pipe())
            assert cli.main(["--config", str(commands.site.root / "config.toml"), *words]) == 0
        assert not list(folder.iterdir())
        return pipe.got.getvalue()

    return run


def test_what_can_be_read_from_a_pipe_goes_there(
    site: Site, commands: Commands, key: tuple[str, ...], piped: Piped, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    for words in (("keys",), ("records", "work"), ("export", "work")):
        commands.run(*words, "-o", str(file))
        assert piped(*words, "-v", "-o", "-") == file.read_bytes()
        file.unlink()
    assert piped("report", "-o", "-", *key).endswith(b"</html>\n")
    tar = piped("export", "work", "--format", "tar", "-o", "-", *key)
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        contents = members.extractfile(members.getmembers()[0])
        assert contents is not None and contents.read() == site.image().read_bytes()


def test_what_cannot_says_so(
    commands: Commands,
    key: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert "sparse" in commands.fails(2, "export", "work", "--format", "raw", "-o", "-", *key)
    for words in (("keys",), ("records", "work"), ("export", "work"), ("report",)):
        assert "-o FILE" in commands.fails(2, *words, "--json", "-o", "-")
    for words in (("assemble", "work", "-o", "-", *key), ("upkeep", "--report", "-")):
        with pytest.raises(SystemExit) as ended:
            cli.main([*words])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and "standard output" in said.splitlines()[-1]
    assert set(tmp_path.iterdir()) == before
    commands.run("assemble", "work", "-o", "./-", *key)
    assert (tmp_path / "-").stat().st_size == 4 * GRAIN

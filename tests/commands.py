# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of the backup VM, run within the test's process."""

import json
from pathlib import Path
from typing import Any

import pytest

from backup_vm import cli
from tests.kit import PASSPHRASE, Site


class Commands:
    """Runs ``sparsebak`` for a site, with the passphrase where a command takes one."""

    def __init__(self, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
        self.site, self._capsys = site, capsys
        self.passphrase = site.root / "pw"
        self.passphrase.write_bytes(PASSPHRASE)

    def run(self, *words: str, expect: int | None = 0) -> tuple[str, str]:
        code, out, err = self.outcome(*words)
        assert expect in (code, None), (words, code, out, err)
        return out, err

    def outcome(self, *words: str) -> tuple[int, str, str]:
        """Exit code and what was printed."""
        self._capsys.readouterr()
        code = cli.main(["--config", str(self.site.root / "config.toml"), *words])
        return code, *self._capsys.readouterr()

    def json(self, *words: str, expect: int | None = 0) -> Any:
        return json.loads(self.run(*words, "--json", expect=expect)[0])

    def keyed(self, *words: str) -> Any:
        """With the key, as data."""
        return self.json(*words, "--passphrase-file", str(self.passphrase))

    def fails(self, code: int, *words: str) -> str:
        error = self.run(*words, expect=code)[1]
        assert error.startswith("sparsebak: ") and error.count("\n") == 1, error
        return error

    def settings(self, text: str) -> Path:
        path = self.site.root / "config.toml"
        path.write_text(text)
        return path

    def names(self) -> list[str]:
        """Names of all sessions, of all volumes."""
        return [
            session["session"]
            for volume in self.keyed("list")["volumes"]
            for session in volume["sessions"]
        ]

# SPDX-License-Identifier: GPL-2.0-or-later
"""An office: laptops, each with a volume and an archive of its own, all at one place."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backup_vm import cli
from tests.kit import GRAIN, Site, change, fill

DAY = 86400
RULES = '[prune]\nkeep_daily = 2\nmin_age = "0d"\nmax_removed = "100%"\n'


class Office:
    """Laptops by name, whose archives are at ``place``; ``clock`` is what every machine takes for
    now.
    """

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        place: str = "",
    ) -> None:
        import time

        self.folder, self._capsys = folder, capsys
        self.place = place or str(folder / "place")
        if not place:
            Path(self.place).mkdir()
        self.clock = time.time()
        monkeypatch.setattr(time, "time", lambda: self.clock)
        monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.delenv("SPARSEBAK_ARCHIVE", raising=False)
        self.settings = folder / "config.toml"
        self.settings.write_text("")
        self.rules = folder / "upkeep.toml"
        self.rules.write_text(RULES)
        self.laptops: dict[str, Site] = {}
        self._rng = random.Random(1)

    def add(self, *names: str, grains: int = 6) -> None:
        """Laptops, each with one session."""
        for name in names:
            site = Site(self.folder / "laptops" / name.replace("/", "-"), make=False)
            site.archive = (  # type: ignore[assignment]
                Path(self.place) / name if "://" not in self.place else f"{self.place}/{name}"
            )
            site._make()
            site.add_archive("laptop", site.archive)
            fill(site.image(), grains * GRAIN, len(self.laptops))
            self.laptops[name] = site
            site.backup()

    def back_up(self, *names: str, days: float = 1.0) -> None:
        """A day later, a session of each laptop named; of all when there is none."""
        self.clock += days * DAY
        for name in names or self.laptops:
            change(self.laptops[name].image(), self._rng, resize=False)
            self.laptops[name].backup()

    def keep(self, *words: str, expect: int | None = 0) -> tuple[Any, str]:
        """Run upkeep; what it says as data, and on standard error."""
        self._capsys.readouterr()
        code = cli.main(["--config", str(self.settings), "upkeep", self.place, "--json", *words])
        out, error = self._capsys.readouterr()
        assert expect in (code, None), (code, out, error)
        return (json.loads(out) if out else None), error

    def said(self, *words: str, expect: int = 0) -> tuple[str, str]:
        """The same as people see it."""
        self._capsys.readouterr()
        code = cli.main(["--config", str(self.settings), "upkeep", self.place, *words])
        out, error = self._capsys.readouterr()
        assert code == expect, (code, out, error)
        return out, error

    def rows(self, *words: str, expect: int = 0) -> dict[str, Any]:
        """Run upkeep; the row of each archive by its name."""
        return {row["name"]: row for row in self.keep(*words, expect=expect)[0]["archives"]}

    def sessions(self, name: str) -> int:
        """How many there are in an archive."""
        with self.laptops[name].open() as archive:
            return len(archive.session_files())


Make = Callable[..., Office]

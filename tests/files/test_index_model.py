# SPDX-License-Identifier: GPL-2.0-or-later
"""What indexes of names answer is what reading answers, for any trees in real file systems, however
the indexes were made, made again, handed on, lost and damaged.
"""

import io
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backup_vm import cli
from tests.kit import PASSPHRASE, Site

LONG = os.environ.get("SPARSEBAK_LONG") == "1"
NAME = st.sampled_from(
    ["a", "b", "a-", "a.b", "A", "[x]", "*", "a\nb", "-n", "\udcff", "é", "x.txt"]
)
FILE = st.one_of(
    st.text("xy", max_size=3), st.sampled_from([Path("a"), Path("b/.."), Path("nowhere")])
)
"""A file of this text, or a symbolic link that leads there."""
TREE = st.dictionaries(st.lists(NAME, min_size=1, max_size=3).map(tuple), FILE, max_size=8)
PATTERN = st.sampled_from(
    ["*", "a*", "*.txt", "?", "[a-b]", "\udcff*", "a\n*", "[[]x]", "[", "*a*b"]
)
FIND = st.tuples(
    st.lists(st.one_of(NAME, st.just("..")), max_size=2).map("/".join).map("./{}".format),
    st.one_of(st.just([]), PATTERN.map(lambda one: [f"--name={one}"])),
    st.sampled_from([[], ["--type", "f"], ["--type", "d"], ["--type", "l"]]),
)
HISTORY = st.lists(NAME, min_size=1, max_size=2).map("/".join).map("./{}".format)
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["index", "index one", "again one", "again", "prune", "lose", "damage"]),
        st.integers(0, 1 << 30),
    ),
    max_size=4,
)


def filled(image: Path, tree: dict[tuple[str, ...], str | Path]) -> None:
    """A file system with these files, the parents of which are folders."""
    with tempfile.TemporaryDirectory() as raw:
        for parts, what in tree.items():
            path = Path(raw, *parts)
            folders = [one for one in path.parents if one.is_relative_to(raw)]
            if os.path.lexists(path) or any(one.is_symlink() or one.is_file() for one in folders):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(what, Path):
                path.symlink_to(what)
            else:
                path.write_text(what)
                os.utime(path, (1, 1))
        image.unlink()
        words = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", raw, str(image), "2M"]
        env = {**os.environ, "E2FSPROGS_FAKE_TIME": "1000000"}
        subprocess.run(words, check=True, capture_output=True, env=env)


class Asked:
    """The commands on an archive with a session of each of these trees."""

    def __init__(self, root: Path, trees: list[dict[tuple[str, ...], str | Path]]) -> None:
        self.site = Site(root / "site")
        self._key = ("--passphrase-file", str(root / "pw"))
        (root / "pw").write_bytes(PASSPHRASE)
        for tree in trees:
            filled(self.site.image(), tree)
            self.site.backup()
        self.index()

    def run(self, *words: str) -> tuple[int, str]:
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()):
            code = cli.main(["--archive", str(self.site.archive), *words])
        return code, out.getvalue()

    def index(self, *words: str) -> None:
        assert self.run("files", "index", *self._key, *words, "work/private")[0] == 0

    def names(self) -> list[str]:
        (volume,) = json.loads(self.run("list", "--json", *self._key)[1])["volumes"]
        return [one["session"] for one in volume["sessions"]]

    def indexes(self) -> list[Path]:
        return sorted(self.site.archive.glob("volumes/*/*.names"))

    def act(self, what: str, chance: int) -> None:
        names, indexes = self.names(), self.indexes()
        one = ("--session", names[chance % len(names)])
        if what in ("index", "again"):
            self.index(*["--again"] * (what == "again"))
        elif what in ("index one", "again one"):
            self.index(*one, *["--again"] * (what == "again one"))
        elif what == "prune" and one[1] != names[-1]:
            assert self.run("prune", "work/private", *one, *self._key, "--yes")[0] == 0
        elif what == "lose" and indexes:
            indexes[chance % len(indexes)].unlink()
        elif what == "damage" and indexes:
            path = indexes[chance % len(indexes)]
            raw = bytearray(path.read_bytes())
            raw[chance % len(raw)] ^= 1 << chance % 8
            path.write_bytes(raw)

    def find(self, top: str, name: list[str], kind: list[str]) -> Any:
        words = ("files", "find", "--session", "all", "--json", *self._key, *name, *kind)
        return self.run(*words, "--", "work/private", top)

    def history(self, path: str) -> Any:
        words = ("files", "history", "--json", *self._key, "--", "work/private", path)
        code, out = self.run(*words)
        rows = json.loads(out)["sessions"] if code == 0 else []
        return code, [(row["session"], row["change"]) for row in rows]


@settings(
    max_examples=100 if LONG else 3,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    st.lists(TREE, min_size=2, max_size=4),
    ACTS,
    st.lists(FIND, min_size=1, max_size=3),
    st.lists(HISTORY, max_size=2),
)
def test_indexes_answer_what_reading_answers(
    tmp_path_factory: pytest.TempPathFactory,
    trees: list[dict[tuple[str, ...], str | Path]],
    acts: list[tuple[str, int]],
    finds: list[Any],
    histories: list[str],
) -> None:
    root = tmp_path_factory.mktemp("model")
    try:
        asked = Asked(root, trees)
        for what, chance in acts:
            asked.act(what, chance)
        answers = []
        for _ in range(2):
            found = [asked.find(*words) for words in finds]
            answers.append(found + [asked.history(path) for path in histories])
            for path in asked.indexes():
                path.unlink()
        assert answers[0] == answers[1]
        assert all(code == 0 for code, _ in answers[0][: len(finds)])
    finally:
        shutil.rmtree(root)

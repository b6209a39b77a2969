# SPDX-License-Identifier: GPL-2.0-or-later
"""What shows or takes what is in an archive and its sessions, down to their files. On a file system
that fails, as all else.
"""

from typing import Any

from backup_vm.archive.name_index import SUFFIX
from tests.faults.harness import Place
from tests.faults.promises import ARCHIVE, COPY, STATE, copied
from tests.faults.scenarios import Scenario, without_catalog
from tests.files.indexed import STATES, filled

_KEYED = ("--passphrase-file", "{passphrase}")
_FILES = "work/private"
_INDEX = ("files", "index", _FILES, "--session", "latest", *_KEYED)
_TEXT = STATES[1]["b/c.txt"]


def done(place: Place, *words: str) -> None:
    """Run a command that must succeed."""
    outcome = place.command(*words)
    assert outcome.code == 0, outcome.text


def with_files(place: Place) -> None:
    """A session of a volume with a file system."""
    filled(place.site.image(), STATES[1], "1M")
    done(place, "backup")


def with_names(place: Place) -> None:
    """The same, with an index of the names in it, which the copy lacks."""
    with_files(place)
    done(place, *_INDEX)


def _names(place: Place, archive: str) -> list[str]:
    folder = place.root / archive
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(f"*{SUFFIX}"))


def indexed(place: Place) -> None:
    """The newest session has an index, which is whole."""
    assert len(_names(place, ARCHIVE)) == 1, "there is no index"
    done(place, "scrub")


def copied_with_names(place: Place) -> None:
    copied(place)
    assert _names(place, COPY) == _names(place, ARCHIVE), "the index is not copied"
    outcome = place.command("scrub", archive=COPY)
    assert outcome.code == 0, outcome.text


def taken(place: Place) -> None:
    """The file is there, as it is in the volume."""
    assert (place.root / "taken" / "c.txt").read_text() == _TEXT


def with_a_folder(place: Place) -> None:
    with_files(place)
    (place.root / "taken").mkdir()


def made(place: Place) -> None:
    newest = [*place.images()[_FILES].values()][-1]
    assert (place.root / "out.img").read_bytes() == newest


def assemble(place: Place) -> int:
    """Make an image with the words of the original."""
    from backup_vm.cli.spbk_assemble import main

    words: dict[str, Any] = place.words
    given = ("{root}/site/archive/work/private", "-o", "{root}/out.img", *_KEYED)
    return main([word.format(**words) for word in given])


_TAKE = ("files", "cp", _FILES, "/b/c.txt", "{root}/taken", *_KEYED)
_LS = ("files", "ls", _FILES, "/b", *_KEYED)
_FIND = ("files", "find", _FILES, "--name", "*.txt", *_KEYED)
INSIDE = (
    Scenario("files index", _INDEX, prepare=with_files, promised=indexed),
    Scenario("files index, nothing new", _INDEX, prepare=with_names, promised=indexed),
    Scenario("files ls", _LS, prepare=with_files, shows=True),
    Scenario("files find, by an index", _FIND, prepare=with_names, shows=True),
    Scenario("files cp", _TAKE, where="taken*", prepare=with_a_folder, promised=taken,
             again=(0, 1, 2)),
    Scenario("files cp, its source", _TAKE, prepare=with_a_folder, promised=taken,
             again=(0, 1, 2)),
    Scenario("copy, with names", ("copy", "{root}/copy"), where=COPY, prepare=with_names,
             promised=copied_with_names),
    Scenario("spbk-assemble", action=assemble, promised=made, again=(0, 1)),
    Scenario("diff", ("diff", "work/private", "{first}", "latest"), shows=True),
    Scenario("diff without a catalog", ("diff", "work/private", "{first}", "latest"),
             prepare=without_catalog, shows=True),
    Scenario("agent volumes", ("volumes",), agent=True, where=STATE, shows=True),
    Scenario("agent status", ("status",), agent=True, where=STATE, shows=True),
    Scenario("agent check", ("check",), agent=True, where=STATE, shows=True),
)  # fmt: skip

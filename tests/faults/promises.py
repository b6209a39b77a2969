# SPDX-License-Identifier: GPL-2.0-or-later
"""What an exit code of 0 promises: each raises AssertionError unless it is there."""

import shutil
from collections.abc import Callable

from tests.faults.harness import VOLUMES, Place, run

ARCHIVE, COPY, STATE, POOL = "site/archive", "copy", "site/dom0", "site/pool"
Step = Callable[[Place], object]


def backed_up(place: Place, archive: str = ARCHIVE) -> None:
    now, found = place.now(), place.images(archive)
    for name in VOLUMES:
        assert [*found[name].values()][-1:] == [now[name]], f"{name} is not backed up"


def backed_up_to(archive: str) -> Step:
    return lambda place: backed_up(place, archive)


def copied(place: Place) -> None:
    assert place.images(COPY) == place.images(), "the copy is not the archive"


def imported(place: Place) -> None:
    newest = [*place.images()["work/private"].values()][-1]
    assert newest in place.images(COPY)["work/private"].values(), "not imported"


def gone(place: Place) -> None:
    doomed = {place.names["first"], place.names["second"]}
    for name in VOLUMES:
        assert not doomed & set(place.images()[name]), "what was to be removed is there"


def first_gone(place: Place) -> None:
    assert place.names["first"] not in place.images()["work/private"]


def deleted(place: Place) -> None:
    assert not place.images()["other/private"]


def assembled(place: Place) -> None:
    expected = [*place.images()["work/private"].values()][-1]
    assert (place.root / "out.img").read_bytes() == expected, "assembled otherwise"


def exported(place: Place) -> None:
    """What was exported can be imported."""
    target = place.root / "taken"
    shutil.copytree(place.root / COPY, target)
    outcome = place.command("import", "{root}/out.sbx", archive="taken")
    assert outcome.code == 0, outcome.text
    newest = [*place.images()["work/private"].values()][-1]
    assert newest in place.images("taken")["work/private"].values()
    shutil.rmtree(target)


def restored(place: Place) -> None:
    first = place.images()["work/private"][place.names["first"]]
    assert place.site.contents() == first, "restored otherwise"


def tagged(place: Place) -> None:
    outcome = place.command("list", "--json", "--passphrase-file", "{passphrase}")
    assert '"kept-for-tests"' in outcome.text, outcome.text


def reported(place: Place) -> None:
    text = (place.root / "out.html").read_text()
    assert text.rstrip().endswith("</html>")


def can_be_taken_over(place: Place) -> None:
    """What ``keys`` wrote is taken by another dom0."""
    other = place.root / "other-dom0"
    other.mkdir(exist_ok=True)
    (other / "agent.toml").write_text('state_dir = "state"\n')
    outcome = run(
        lambda: _agent(
            other / "agent.toml",
            *("keys", "import", "taken", str(place.root / "out.keys"), "--caller", "backup-vm"),
            *("--passphrase-file", str(place.root / "passphrase")),
        )
    )
    assert outcome.code == 0, outcome.text
    shutil.rmtree(other)


def _agent(config: object, *words: str) -> int:
    from dom0_agent.admin.cli import main

    return int(main(["--config", str(config), *words]) or 0)


def known_in_dom0(label: str) -> Step:
    def promised(place: Place) -> None:
        outcome = run(lambda: _agent(place.site.config, "archive", "list"))
        assert label in outcome.text, outcome.text

    return promised


def unknown_in_dom0(label: str) -> Step:
    def promised(place: Place) -> None:
        outcome = run(lambda: _agent(place.site.config, "archive", "list"))
        assert label not in outcome.text, outcome.text

    return promised


def no_lease(place: Place) -> None:
    assert not [*(place.root / ARCHIVE / "locks").glob("*-*")]


def backed_up_after(place: Place, archive: str) -> None:
    """The archive takes a backup."""
    outcome = place.command("backup", archive=archive)
    assert outcome.code == 0, outcome.text
    backed_up(place, archive)

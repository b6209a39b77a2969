# SPDX-License-Identifier: GPL-2.0-or-later
"""What an ``open`` that is killed leaves: the next monitor, or the next ``open``, removes its
disposable.
"""

import json
import os
import pkgutil
import signal
import uuid
from contextlib import ExitStack
from typing import Any

import pytest

from common.durable import lock
from dom0_agent.admin import unfinished
from dom0_agent.admin.tags import READER_TAG
from tests.qubes.opening_kit import CONTENTS, Opened, ext4
from tests.qubes.qubesd import Qube, Refusal


@pytest.fixture
def site(opened: Opened) -> Opened:
    return opened


@pytest.mark.parametrize("when", ["tags.add", "start", "hand over"])
def test_one_that_is_killed_leaves_no_disposable(
    site: Opened,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """Neither the tag nor what it read stays; whoever has one open already keeps it."""
    ext4(site.site.image(), CONTENTS)
    site.site.backup()
    known = ("open", "work", "--yes", "-q", "--records", site.records())
    assert site.agent(*known) == 0
    (shown,) = site.disposables()
    where = {
        "tags.add": ("qubesadmin.vm.QubesVM.start", True),
        "start": ("qubesadmin.vm.QubesVM.start", False),
        "hand over": ("dom0_agent.admin.opening._hand_over", True),
    }
    name, before = where[when]
    child = os.fork()
    if not child:
        _die_in(name, before)
        os._exit(site.agent(*known))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (left,) = set(site.disposables()) - {shown}
    assert READER_TAG in site.qubesd.qubes[left].tags
    told = list[tuple[str, ...]]()
    monkeypatch.setattr("dom0_agent.notify.notify", lambda *words, **_: told.append(words))
    capfd.readouterr()
    assert site.agent("monitor", "--json") == 0
    assert json.loads(capfd.readouterr().out)["unfinished"] == [left]
    assert site.disposables() == [shown] and left in told[0][1]
    assert not list((site.site.root / "dom0/opening").iterdir())
    assert site.agent("monitor") == 0 and len(told) == 1 and site.disposables() == [shown]


def _die_in(name: str, before: bool) -> None:
    """In this process, die in a function: instead of it, or at its end."""
    where, _, function = name.rpartition(".")
    of = pkgutil.resolve_name(where)
    real = getattr(of, function)

    def die(*words: Any, **named: Any) -> None:
        if not before:
            real(*words, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(of, function, die)


def test_a_disposable_of_the_same_name_is_another(site: Opened) -> None:
    """After a crash of dom0 Qubes OS has removed it, and may give its name again."""
    site.site.backup()
    folder = site.site.root / "dom0/opening"
    folder.mkdir()
    for name, written, tagged in (
        ("disp7", str(uuid.uuid4()), True),
        ("disp8", "", False),
        ("work", "", False),
        ("disp9", str(uuid.uuid4()), False),
    ):
        (folder / name).write_text(written)
        if name in ("disp7", "disp8"):
            made = site.qubesd.add(name, "DispVM", "vm-pool")
            made.tags |= {READER_TAG} if tagged else set()
    before = set(site.qubesd.qubes)
    assert site.agent("monitor", "-q") == 0
    assert set(site.qubesd.qubes) == before and not list(folder.iterdir())


def test_what_qubesd_refuses_is_tried_again(site: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next ``open`` removes it, too, and says so."""
    site.site.backup()
    left = site.qubesd.add("disp7", "DispVM", "vm-pool")
    (site.site.root / "dom0/opening").mkdir()
    (site.site.root / "dom0/opening/disp7").write_text(left.uuid)
    real = site.qubesd._vm

    def stumble(qube: Qube, verb: str, argument: str, payload: str) -> str:
        if verb in ("Kill", "Remove"):
            raise Refusal("QubesException", "storage is busy")
        return real(qube, verb, argument, payload)

    with monkeypatch.context() as patch:
        patch.setattr(site.qubesd, "_vm", stumble)
        assert site.agent("monitor", "-q") == 0 and "disp7" in site.qubesd.qubes
    assert site.agent("open", "nobody", "--yes") == 1 and "disp7" not in site.qubesd.qubes


def test_one_whose_name_is_still_being_tidied_up(
    site: Opened, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where qubesd is slow to answer a monitor: one line says so, and nothing stays."""
    site.site.backup()
    folder = site.site.root / "dom0/opening"
    folder.mkdir()
    monkeypatch.setattr(unfinished, "_PATIENCE", 0.1)
    monkeypatch.setattr(unfinished, "sweep", lambda _: [])
    before = site.disposables()
    with ExitStack() as held:
        for number in range(100, 110):
            held.callback(os.close, lock(folder / f"disp{number}"))
        capfd.readouterr()
        assert site.agent("open", "work", "--yes", "-q", "--records", site.records()) == 1
    (said,) = [one for one in capfd.readouterr().err.splitlines() if not one.startswith("<")]
    assert said.startswith("sparsebak-agent: disp100, "), said
    assert site.disposables() == before

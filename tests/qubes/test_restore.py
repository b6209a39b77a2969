# SPDX-License-Identifier: GPL-2.0-or-later
"""Backup and restore on a Qubes machine: running and halted qubes, through the Admin API, back from
nothing.
"""

import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backup_vm.agent.call import RefusedError
from backup_vm.agent.client import Agent
from backup_vm.jobs.feeding import feed
from backup_vm.terminal.progress import Progress
from backup_vm.volumes import stored_volumes
from tests.conftest import cannot
from tests.kit import change
from tests.qubes.kit import QubesSite
from wire.names import Restoring


def stored(site: QubesSite) -> list[str]:
    with site.open() as archive:
        return [volume.name for volume in stored_volumes(archive, site.keys(archive), {})]


def test_a_whole_machine(qubes: QubesSite) -> None:
    qubes.backup()
    assert stored(qubes) == [
        "fedora/private", "fedora/root", "fedora/settings", "vault/private", "vault/settings",
        "work/private", "work/settings",
    ]  # fmt: skip
    qubes.start("work")
    qubes.backup()
    assert list(qubes.images().values())[-1] == qubes.dirty().read_bytes()
    qubes.stop("work")
    report = qubes.backup()
    assert list(qubes.images().values())[-1] == qubes.image().read_bytes()
    assert (
        next(
            done for done in report.done if done.volume == "private" and done.qube == "work"
        ).stored
        == 0
    )
    # Nothing in them changed.
    assert next(done for done in report.done if done.volume == "settings").stored == 0
    assert qubes.scrubbed() == []


def test_a_running_qube_without_snapshots_is_backed_up_live(qubes: QubesSite) -> None:
    """With driver file-reflink its image is renamed while it runs, and not copied."""
    qubes.qubesd.qubes["work"].volumes["private"].revisions = -1
    qubes.backup()
    qubes.qubesd.qubes["work"].state = "Running"
    qubes.image().rename(qubes.dirty())
    change(qubes.dirty(), random.Random(1), resize=False)
    qubes.backup("work/private")
    assert list(qubes.images().values())[-1] == qubes.dirty().read_bytes()
    qubes.dirty().rename(qubes.image())
    qubes.qubesd.qubes["work"].state = "Halted"
    (done,) = qubes.backup("work/private").done
    assert done.stored == 0
    assert list(qubes.images().values())[-1] == qubes.image().read_bytes()


def test_restore_goes_through_qubesd_and_keeps_the_old_contents(qubes: QubesSite) -> None:
    qubes.backup()
    before = qubes.contents()
    change(qubes.image(), random.Random(1), resize=False)
    after = qubes.contents()
    assert after != before
    qubes.restore()
    assert qubes.contents() == before
    assert Path(f"{qubes.image()}.revision").read_bytes() == after
    qubes.backup()
    assert list(qubes.images().values())[-1] == before


def test_a_running_qube_is_not_restored(qubes: QubesSite) -> None:
    qubes.backup()
    qubes.start("work")
    before = qubes.contents()
    with pytest.raises(RefusedError, match="running"):
        qubes.restore()
    assert qubes.contents() == before


def test_what_does_not_prove_authentic_never_takes_effect(qubes: QubesSite) -> None:
    """At the very last frame, too: the last byte is held back from qubesd until all is proven."""
    qubes.backup()
    before = qubes.contents()
    change(qubes.image(), random.Random(1), resize=False)
    after = qubes.contents()
    with qubes.open() as archive:
        named = next(
            v for v in stored_volumes(archive, qubes.keys(archive), {}) if v.name == "work/private"
        )
        image = archive.image(list(named.sessions), named.sessions[-1])
        whole = _Collected()
        feed(archive, image, named.name, Progress())(whole)  # type: ignore[arg-type]
        for cut in (1, 4, len(whole.data) // 2):
            with pytest.raises(RefusedError):
                _send(qubes.agent(archive), image.session.name, bytes(whole.data[:-cut]))
            assert qubes.contents() == after
        _send(qubes.agent(archive), image.session.name, bytes(whole.data))
    assert qubes.contents() == before
    assert not list(qubes.pool.rglob("*.import"))


class _Collected:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, part: bytes) -> int:
        self.data += part
        return len(part)


def _send(agent: Agent, session: str, data: bytes) -> None:
    asked = Restoring("work", "private", session)
    agent.restore(asked, lambda stream: stream.write(data) and None)


def test_another_qubes_disk_is_refused(qubes: QubesSite) -> None:
    qubes.backup()
    before = qubes.contents("vault/private")
    with pytest.raises(RefusedError, match="another volume"):
        qubes.restore(name="work/private", to="vault/private")
    assert qubes.contents("vault/private") == before
    with open(qubes.config, "a") as config:
        config.write('[[allow_restore]]\nfrom = "work/private"\nto = "vault/private"\n')
    qubes.restore(name="work/private", to="vault/private")
    assert qubes.contents("vault/private") == qubes.contents("work/private")


def test_a_qube_that_is_gone_comes_back(qubes: QubesSite) -> None:
    work = qubes.qubesd.qubes["work"]
    work.properties |= {
        "label": (False, "label", "blue"),
        "memory": (False, "int", "777"),
        "kernelopts": (False, "str", "evil"),
    }
    work.features |= {"service.cups": "1", "menu-items": "firefox.desktop"}
    work.tags.add("precious")
    work.notes = "mind the gap"
    qubes.backup()
    before = qubes.contents()
    del qubes.qubesd.qubes["work"]
    qubes.image().unlink()
    with pytest.raises(RefusedError):
        qubes.restore()  # its settings come first
    with qubes.open() as archive:
        named = next(
            v for v in stored_volumes(archive, qubes.keys(archive), {}) if v.name == "work/settings"
        )
        image = archive.image(list(named.sessions), named.sessions[-1])
        with pytest.raises(RefusedError):
            qubes.restored(
                qubes.agent(archive),
                image,
                "vault/settings",
                feed(archive, image, named.name, Progress()),
                absent=True,
            )
        qubes.restored(
            qubes.agent(archive),
            image,
            "work/settings",
            feed(archive, image, named.name, Progress()),
            absent=True,
        )
    assert "work" not in qubes.qubesd.qubes  # a call makes no qube
    qubes.apply("work")
    made = qubes.qubesd.qubes["work"]
    assert (made.klass, made.properties["label"][2], made.properties["memory"][2]) == (
        "AppVM",
        "blue",
        "777",
    )
    # What gives it more is not set.
    assert made.properties["netvm"][2] == "" and made.properties["kernelopts"][2] == ""
    assert made.features == {"menu-items": "firefox.desktop"}
    assert made.notes == ("mind the gap" if qubes.qubesd.release != "4.2" else "")  # 4.3's
    assert "sparsebak" in made.tags and "precious" not in made.tags
    qubes.place("work", "private")
    qubes.image().write_bytes(b"")  # as qubesd makes it
    qubes.restore()
    assert qubes.contents() == before


def test_older_settings_bring_no_network(qubes: QubesSite) -> None:
    """A network that was taken away since the session does not come back with it."""
    work = qubes.qubesd.qubes["work"]
    for netvm in ("vault", ""):
        work.properties["netvm"] = (False, "vm", netvm)
        qubes.backup()
    work.properties["netvm"] = (False, "vm", "vault")
    for session, expected in ((0, ""), (-1, "")):
        assert remade(qubes, session) == expected
    qubes.backup()  # made again, it has none: with one it is the newest again
    qubes.qubesd.qubes["work"].properties["netvm"] = (False, "vm", "vault")
    qubes.backup()
    assert remade(qubes, -1) == "vault"


def remade(site: QubesSite, session: int) -> str:
    """The network of a qube that was made again from a session of its settings."""
    del site.qubesd.qubes["work"]
    with site.open() as archive:
        named = next(
            v for v in stored_volumes(archive, site.keys(archive), {}) if v.name == "work/settings"
        )
        image = archive.image(list(named.sessions), named.sessions[session])
        send = feed(archive, image, named.name, Progress())
        site.restored(site.agent(archive), image, "work/settings", send, absent=True)
    site.apply("work")
    site.place("work", "private")
    return str(site.qubesd.qubes["work"].properties["netvm"][2])


def test_domains_go_with_the_record(qubes: QubesSite) -> None:
    """Equal chunks are stored once only where they are in the roots of two templates."""
    qubes.add_qube("alone", "StandaloneVM")
    qubes.add_qube("debian", "TemplateVM")
    for name in ("alone/root", "alone/private", "debian/root", "work/private"):
        qubes.image(name).write_bytes(qubes.image("fedora/root").read_bytes())
    done = {f"{d.qube}/{d.volume}": d.stored for d in qubes.backup().done}
    assert done["work/private"] > 0 and done["alone/private"] > 0 and done["alone/root"] > 0
    assert sorted([done["debian/root"], done["fedora/root"]])[0] == 0
    assert max(done["debian/root"], done["fedora/root"]) > 0


def test_restore_through_the_resident_agent_as_its_unit_confines_it(qubes: QubesSite) -> None:
    """Qubes' import script writes through sudo, which changes users and groups: the unit must leave
    it that.
    """
    from backup_vm.agent.transport.unix import UnixTransport
    from tests.packages.test_units import ROOT, confined

    if shutil.which("sudo") is None:
        cannot("sudo is not installed")
    unit = ROOT / "systemd/dom0/sparsebak-agent.service"
    qubes.backup()
    before = qubes.contents()
    qubes.image().write_bytes(bytes(len(before)))
    import qubesadmin  # type: ignore[import-not-found,unused-ignore]

    folder = Path(qubesadmin.__file__).parent.parent
    run = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import qubesadmin, qubesadmin.config as c;"
        " c.QUBESD_SOCKET, c.QREXEC_SERVICES_DIR = sys.argv[3:5]; qubesadmin.Qubes ="
        " getattr(qubesadmin, 'app', qubesadmin).__dict__.get('QubesLocal', qubesadmin.Qubes); from"
        " dom0_agent.admin.cli import main; sys.exit(main(sys.argv[5:]))"
    )
    sockets = qubes.root / "sockets"
    command = [
        *confined(unit),
        sys.executable,
        "-c",
        run,
        str(ROOT),
        str(folder),
        str(qubes.qubesd.socket),
    ]
    command += [
        str(qubes.qubesd.services),
        "--config",
        str(qubes.config),
        "serve",
        "--listen",
        str(sockets),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and "ready" in process.stderr.readline()
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            with qubes.open() as archive:
                named = next(
                    v
                    for v in stored_volumes(archive, qubes.keys(archive), {})
                    if v.name == "work/private"
                )
                image = archive.image(list(named.sessions), named.sessions[-1])
                agent = Agent(UnixTransport(sockets, "backup-vm"))
                agent.use(archive.parameters.archive, archive.parameters.chunk_size)
                asked = Restoring("work", "private", image.session.name)
                agent.restore(asked, feed(archive, image, named.name, Progress()))
        finally:
            process.terminate()
    assert qubes.contents() == before

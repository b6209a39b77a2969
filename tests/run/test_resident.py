# SPDX-License-Identifier: GPL-2.0-or-later
"""The resident agent: the same answers as from the service files, each call a process of its own,
and nothing stays behind.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backup_vm.agent.call import RefusedError
from backup_vm.agent.client import Agent
from backup_vm.agent.transport.unix import UnixTransport
from dom0_agent.rpc.heads import SERVICES
from dom0_agent.rpc.resident import HEAD_PATIENCE
from tests.kit import GRAIN, Site, change, fill
from tests.patience import PATIENCE, until
from wire.messages import HEADER, HEADER_SIZE, Request, Status
from wire.status import Code

ROOT = Path(__file__).parent.parent.parent
AGENT = Path(sys.executable).parent / "sparsebak-agent"


@contextmanager
def resident(site: Site, *more: str) -> Iterator["subprocess.Popen[str]"]:
    """A resident agent for a site, with its sockets in ``site.root/sockets``."""
    command = [AGENT, "--config", site.config, "serve", "--listen", site.root / "sockets", *more]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "ready on 9 sockets" in process.stderr.readline()
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield process
        finally:
            process.terminate()


def agent_of(site: Site, caller: str = "backup-vm") -> Agent:
    return Agent(UnixTransport(site.root / "sockets", caller))


def raw(site: Site, service: str, sent: bytes, patience: float = 20) -> bytes:
    """What a connection is answered."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(patience)
        one.connect(str(site.root / "sockets" / f"sparsebak.{service}"))
        one.sendall(sent)
        one.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while block := one.recv(1 << 16):
                answer += block
        except ConnectionResetError:
            pass
        return answer


def test_a_whole_life(site: Site) -> None:
    rng, contents = random.Random(3), []
    fill(site.image(), 40 * GRAIN + 5)
    with resident(site):
        for _ in range(3):
            site.backup(agent=agent_of(site))
            contents.append(site.contents())
            change(site.image(), rng)
        assert list(site.images().values()) == contents
        with site.open() as archive:
            from backup_vm.jobs.feeding import feed
            from backup_vm.terminal.progress import Progress
            from backup_vm.volumes import stored_volumes

            (volume,) = stored_volumes(archive, site.keys(archive), {})
            image = archive.image(list(volume.sessions), volume.sessions[0])
            agent = agent_of(site)
            agent.use(archive.parameters.archive, archive.parameters.chunk_size)
            agent.verify(feed(archive, image, volume.name, Progress()))
            site.restored(
                agent, image, "work/private", feed(archive, image, volume.name, Progress())
            )
        assert site.contents() == contents[0]
        with pytest.raises(RefusedError, match="no such archive"):
            agent_of(site, "another-vm").enroll("tests")
    assert site.scrubbed() == []


def test_no_call_imports_anything(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is a fork: what it imports, every call imports again."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # python -X importtime, in its children, too
    fill(site.image(), 5 * GRAIN)
    said: list[str] = []
    command = [AGENT, "--config", site.config, "serve", "--listen", site.root / "sockets"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "ready on" in line:
                break
        thread = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
        thread.start()
        site.backup(agent=agent_of(site))
        change(site.image(), random.Random(1))
        site.backup(agent=agent_of(site))
        process.terminate()
        thread.join()
    assert any("sparsebak.Commit" in line for line in said)
    assert [line for line in said if "import time:" in line] == []


HEADS = [
    b"", b"\0", b"x" * 2000, b"sparsebak.List+", b"sparsebak.List+ backup-vm keyword adminvm",
    b"sparsebak.Nothing+ vm keyword adminvm\0", b"sparsebak.List+ back up keyword adminvm\0",
    b"sparsebak.list+ vm name work\0",
    b"sparsebak.List+../x vm name work\0", b"sparsebak.List+ vm nonsense work\0",
    b"qubes.List+ vm name work\0",
    "sparsebak.List+ vm name w\u00f6rk\0".encode(),
]  # fmt: skip


def test_beginnings_of_every_wrong_kind(site: Site) -> None:
    with resident(site) as process:
        for head in HEADS:
            assert raw(site, "List", head + b"SBRQ" * 50) == b"", head
        for head in (
            b"sparsebak.List+ vm name work\0",
            b"sparsebak.List+-x vm name work\0",
            b"sparsebak.List+ -vm name work\0",
            b"sparsebak.Snapshot+" + b"x" * 3900 + b" vm name work\0",
        ):
            answer = raw(site, "List", head + b"not a request")
            assert (
                Status.parse(answer[HEADER_SIZE:]).code == Code.BAD_REQUEST
                and HEADER.unpack(answer[:HEADER_SIZE])[0] == 0
            )
        assert process.poll() is None
        agent_of(site).enroll("tests")


def test_many_at_once_and_some_that_never_speak(site: Site) -> None:
    with site.open() as archive:
        request = Request(archive=archive.parameters.archive).build()
    with resident(site) as process:
        silent = []
        for _ in range(20):
            one = socket.socket(socket.AF_UNIX)
            one.connect(str(site.root / "sockets/sparsebak.List"))
            silent.append(one)
        answers: list[bytes] = []
        head = b"sparsebak.List+ backup-vm keyword adminvm\0"
        threads = [
            threading.Thread(target=lambda: answers.append(raw(site, "List", head + request)))
            for _ in range(100)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 100 and len(set(answers)) == 1 and len(answers[0]) > 100
        for one in silent:
            one.close()
        until(lambda: not children(process))


def test_a_call_that_dies_takes_nothing_with_it(site: Site) -> None:
    with resident(site) as process:
        one = socket.socket(socket.AF_UNIX)
        one.connect(str(site.root / "sockets/sparsebak.List"))
        one.sendall(b"sparsebak.List+ backup-vm keyword adminvm\0")
        until(lambda: children(process))
        child = children(process)[0]
        limits = Path(f"/proc/{child}/limits")
        until(lambda: re.search(r"core file size\s+[01]\s", limits.read_text()))
        os.kill(int(child), signal.SIGKILL)
        assert one.recv(10) == b""
        one.close()
        agent_of(site).enroll("tests")


def test_stopped_it_lets_calls_end(site: Site) -> None:
    with site.open() as archive:
        request = Request(archive=archive.parameters.archive).build()
    with resident(site) as process:
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(PATIENCE)
        one.connect(str(site.root / "sockets/sparsebak.List"))
        one.sendall(b"sparsebak.List+ backup-vm keyword adminvm\0")
        until(lambda: children(process))
        process.terminate()
        time.sleep(0.5)  # far less than the seconds in which a request may still come
        assert process.poll() is None
        one.sendall(request)
        answer = b""
        while block := one.recv(1 << 16):
            answer += block
        one.close()
        assert HEADER.unpack(answer[:HEADER_SIZE])[1] > 100, "the call was answered as ever"
        assert process.wait(timeout=PATIENCE) == 0


def test_it_goes_when_there_are_no_calls(site: Site) -> None:
    with resident(site, "--idle", "1.5") as process:
        agent_of(site).enroll("tests")
        assert process.wait(timeout=PATIENCE) == 0


def test_sockets_that_systemd_hands_over(site: Site) -> None:
    path = site.root / "sparsebak.Enroll"
    one = socket.socket(socket.AF_UNIX)
    one.bind(str(path))
    one.listen()
    script = (
        f"export LISTEN_PID=$$ LISTEN_FDS=1; exec {AGENT} --config {site.config} serve --idle 2"
        f" 3<&{one.fileno()}"
    )
    process = subprocess.Popen(
        ["bash", "-c", script], pass_fds=[one.fileno()], stderr=subprocess.DEVNULL
    )
    entry, slots, version = Agent(UnixTransport(site.root, "backup-vm")).enroll("tests")
    assert entry.label == "tests" and len(slots) == 2 and version
    assert process.wait(timeout=PATIENCE) == 0
    done = subprocess.run(
        [AGENT, "--config", site.config, "serve"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "no sockets" in done.stderr


def test_mistakes_on_the_way_to_it(commands_for: Callable[[Site], object], site: Site) -> None:
    commands = commands_for(site)
    error = commands.fails(5, "--agent", f"unix:{site.root}/nothing", "backup")  # type: ignore[attr-defined]
    assert "sparsebak-agent serve" in error


def test_the_units_name_every_service() -> None:
    text = (ROOT / "systemd/dom0/sparsebak-agent.socket").read_text()
    assert re.findall(r"ListenStream=/run/qubes-rpc/sparsebak\.(\w+)", text) == list(SERVICES)
    assert "SocketMode=0660" in text and "SocketGroup=qubes" in text


def connected(site: Site, service: str, caller: str, body: bytes = b"") -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(PATIENCE)
    one.connect(str(site.root / "sockets" / f"sparsebak.{service}"))
    one.sendall(f"sparsebak.{service}+ {caller} keyword adminvm".encode() + b"\0" + body)
    return one


def children(process: "subprocess.Popen[str]") -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


@pytest.mark.parametrize("speaks", [b"", b"SB"])
def test_one_caller_cannot_keep_the_others_out(site: Site, speaks: bytes) -> None:
    """Neither by saying nothing, nor by beginning requests that it does not end."""
    with site.open() as archive:
        request = Request(archive=archive.parameters.archive).build()
    with resident(site) as process:
        hostile = [connected(site, "Verify", "evil-vm", speaks) for _ in range(200)]
        time.sleep(0.3)
        start = time.monotonic()
        answer = connected(site, "List", "backup-vm", request)
        assert len(answer.recv(1 << 16)) > 20 and time.monotonic() - start < HEAD_PATIENCE - 2
        assert len(children(process)) <= 5  # of the other at most as many as hold chunks
        site.backup(agent=agent_of(site))
        for one in hostile:
            one.close()
        answer.close()


def test_connections_without_a_beginning(site: Site) -> None:
    """More than there are descriptors by default; half of a beginning does not make it spin."""
    import resource

    with site.open() as archive:
        request = Request(archive=archive.parameters.archive).build()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        with resident(site) as process:
            silent = []
            for _ in range(1100):
                one = socket.socket(socket.AF_UNIX)
                one.connect(str(site.root / "sockets/sparsebak.List"))
                one.send(b"sparsebak.Li")
                silent.append(one)
            answer = connected(site, "List", "backup-vm", request)
            assert len(answer.recv(1 << 16)) > 20
            answer.close()
            fds = len(os.listdir(f"/proc/{process.pid}/fd"))
            assert fds < 300
            used = [sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().split()[13:15]))]
            time.sleep(0.5)
            used.append(sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().split()[13:15])))
            assert used[1] - used[0] < 20  # of 50 ticks
            for one in silent:
                one.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_silent_calls_do_not_keep_it_from_ending(site: Site) -> None:
    with resident(site) as process:
        silent = [connected(site, "Extract", f"vm{n}") for n in range(30)]
        time.sleep(0.3)
        process.terminate()
        assert process.wait(timeout=PATIENCE) == 0
        for one in silent:
            one.close()


def test_a_call_that_is_killed_is_reported(site: Site) -> None:
    command = [AGENT, "--config", site.config, "serve", "--listen", site.root / "sockets"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and "ready" in process.stderr.readline()
        one = connected(site, "List", "backup-vm")
        until(lambda: children(process))
        os.kill(int(children(process)[0]), signal.SIGKILL)
        assert "sparsebak.List from backup-vm was killed: SIGKILL" in process.stderr.readline()
        assert one.recv(10) == b"" and children(process) == []
        one.close()
        process.terminate()


def test_sockets_are_the_owners_in_any_folder(site: Site) -> None:
    """Whoever can connect can say that it is dom0."""
    (site.root / "sockets").mkdir()
    (site.root / "sockets").chmod(0o777)
    before = os.umask(0)
    try:
        with resident(site):
            modes = {
                path.name: path.stat().st_mode & 0o077 for path in (site.root / "sockets").iterdir()
            }
            assert modes == {f"sparsebak.{service}": 0 for service in SERVICES}
    finally:
        os.umask(before)

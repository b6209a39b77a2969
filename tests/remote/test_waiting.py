# SPDX-License-Identifier: GPL-2.0-or-later
"""A store that is silent is given up, one that is slow is not, and a signal ends every wait."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm import stopping
from backup_vm.archive.storage import objects, open_storage
from backup_vm.errors import SparsebakError
from tests.kit import GRAIN, Site
from tests.patience import AT_ONCE, PATIENCE
from tests.remote.conftest import Make
from tests.remote.kit import Network
from tests.remote.stores import headers_only, raw_store, silent, trickling

SPARSEBAK = str(Path(sys.executable).with_name("sparsebak"))
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
URLS = ["s3://bucket/archive", "sftp://me@127.0.0.1:{port}/archive"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("serve", [silent, headers_only])
def test_silence_is_given_up(
    monkeypatch: pytest.MonkeyPatch, url: str, serve: Callable[..., None]
) -> None:
    monkeypatch.setattr(objects, "SILENCE", 1.2)
    monkeypatch.setattr(objects, "PATIENCE", 2.0)
    with raw_store(serve) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        begun = time.monotonic()
        with pytest.raises(SparsebakError, match="does not answer") as raised:
            open_storage(url.format(port=port)).exists("archive.toml")
        assert 2 < time.monotonic() - begun < AT_ONCE and "network" not in raised.value.hint


def test_a_store_that_was_given_up_is_not_waited_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects, "SILENCE_AFTER", 0.3)
    monkeypatch.setattr(objects, "SILENCE", 1.2)
    monkeypatch.setattr(objects, "PATIENCE", 4.0)
    with raw_store(silent) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        storage = open_storage("s3://bucket/archive")
        for limit in (AT_ONCE, 4):
            begun = time.monotonic()
            with pytest.raises(SparsebakError, match="does not answer"):
                storage.remove("packs/ab/1.pack")
            assert time.monotonic() - begun < limit


def test_what_is_slow_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "SILENCE", 1.2)
    monkeypatch.setattr(objects, "DELAYS", ())
    with raw_store(trickling(0.5)) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        begun = time.monotonic()
        assert not open_storage("s3://bucket/archive").exists("archive.toml")
        assert time.monotonic() - begun > 3


def test_an_upload_over_a_slow_line_is_waited_for(
    make_site: Make, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "SILENCE", 1.2)
    monkeypatch.setattr(objects, "DELAYS", ())
    storage = open_storage(network.url("slow"))
    storage.prepare()
    raw = os.urandom(3 << 20)
    network.pause = 0.02
    begun = time.monotonic()
    storage.write("packs/ab/1.pack", raw)
    assert time.monotonic() - begun > 2
    network.pause = 0
    assert storage.read("packs/ab/1.pack") == raw


def waited(process: "subprocess.Popen[bytes]", number: signal.Signals, times: int = 1) -> str:
    """Send a signal; what a command says, which must have ended cleanly, and not have waited."""
    begun = time.monotonic()
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.05)
    said = process.communicate(timeout=PATIENCE)[0].decode()
    assert time.monotonic() - begun < AT_ONCE, said
    assert process.returncode in (130, 128 + number) and "Traceback" not in said, said
    assert said.count("\n") == 1 and "interrupted" in said, said
    return said


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("serve", [silent, headers_only])
@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_ends_a_command_that_waits(
    url: str, serve: Callable[..., None], number: signal.Signals, times: int
) -> None:
    asked = threading.Event()

    def noticed(one: object) -> None:
        asked.set()
        serve(one)

    with raw_store(noticed) as port:
        command = [SPARSEBAK, "--archive", url.format(port=port)]
        process = subprocess.Popen(
            [*command, "list"],
            env={**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert asked.wait(PATIENCE)
        time.sleep(0.2)
        waited(process, number, times)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_backup_whose_store_has_fallen_silent(
    make_site: Make, network: Network, number: signal.Signals
) -> None:
    site: Site = make_site(network.port)
    site.image().write_bytes(os.urandom(160 * GRAIN))
    site.backup()
    site.image().write_bytes(os.urandom(160 * GRAIN))
    network.stall_after = 600_000
    (site.root / "config.toml").write_text("")
    process = subprocess.Popen(
        [SPARSEBAK, "--config", str(site.root / "config.toml")]
        + ["--agent", f"local:{site.config}", "--archive", str(site.archive)]
        + ["--caller", "backup-vm", "backup"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert network.stalled.wait(PATIENCE)
    time.sleep(0.3)
    said = process.poll()
    assert said is None
    waited(process, number)
    network.mend()
    site.backup()
    assert list(site.images().values())[-1] == site.contents() and site.scrubbed() == []


def test_a_second_signal_leaves_no_grace() -> None:
    try:
        stopping.ask()
        stopping.check()
        with pytest.raises(KeyboardInterrupt):
            stopping.sleep(10)
        with stopping.closing():
            stopping.check()
        with pytest.raises(KeyboardInterrupt):
            stopping.check()
        stopping.forget()
        stopping.ask()
        stopping.ask()
        with pytest.raises(KeyboardInterrupt):
            stopping.check()
    finally:
        stopping.forget()


def test_a_process_ends_without_the_library_coming_back(tmp_path: Path) -> None:
    """Its threads abort the process when they meet a Python that is half gone; here one only keeps
    it from going.
    """
    program = (
        "import atexit, sys, threading, time, obstore\n"
        "from backup_vm.cli import main\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "atexit.register(print, 'tidied up')\n"
        f"sys.argv[1:] = ['list', '--archive', {str(tmp_path / 'none')!r}]\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50
    )
    assert (done.returncode, done.stdout) == (10, "tidied up\n"), done

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a backup tells others: a service that watches over it, and Prometheus; and when it waits for
a better moment.
"""

import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backup_vm.archive.holder import Holder
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import NotNowError
from backup_vm.surroundings import require_mains, require_unmetered
from tests.commands import Commands
from tests.conftest import cannot
from tests.kit import GRAIN, fill
from tests.patience import AT_ONCE, PATIENCE


class Watcher:
    """A service as healthchecks.io is: what it was told, and what it answers."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.status, self.slow = 200, 0.0
        watcher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                watcher.told.append(self.path)
                time.sleep(watcher.slow)
                self.send_response(watcher.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/uuid"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    made = Watcher()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def ready(commands: Commands) -> Commands:
    fill(commands.site.image(), 5 * GRAIN)
    return commands


def backup(commands: Commands, *words: str, agent: bool = True) -> tuple[int, str, str]:
    place = f"local:{commands.site.config}" if agent else "local:/nowhere.toml"
    return commands.outcome("--agent", place, "backup", *words)


def test_a_watcher_is_told_of_start_success_and_failure(ready: Commands, watcher: Watcher) -> None:
    assert backup(ready, "--ping-url", watcher.url)[0] == 0
    assert watcher.told == ["/uuid/start", "/uuid"]
    ready.settings(f'ping_url = "{watcher.url}/?x=1"\n')
    assert backup(ready, agent=False)[0] == 5
    assert watcher.told[2:] == ["/uuid/start?x=1", "/uuid/fail?x=1"]
    assert backup(ready, "--dry-run")[0] == 0 and len(watcher.told) == 4, "a look is no backup"


def test_a_watcher_that_cannot_be_told_changes_nothing(
    ready: Commands, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher.status = 500
    code, _, said = backup(ready, "--ping-url", watcher.url)
    assert code == 0 and said.count("could not be told: HTTP Error 500") == 2, said
    assert watcher.url not in said, "whoever reads the log could tell it what he likes"
    watcher.status, watcher.slow = 200, 4 * AT_ONCE
    monkeypatch.setattr("backup_vm.reporting.ping.PATIENCE", 0.2)
    begun = time.monotonic()
    code, _, said = backup(ready, "--ping-url", watcher.url)
    assert code == 0 and "timed out" in said and time.monotonic() - begun < AT_ONCE
    code, _, said = backup(ready, "--ping-url", "http://127.0.0.1:9/x")
    assert code == 0 and "Connection refused" in said


@pytest.mark.parametrize("url", ["ftp://x/y", "file:///etc/passwd", "x", "http://", "http://a b/"])
def test_other_urls_are_wrong_usage(ready: Commands, url: str) -> None:
    assert "is no URL of http" in ready.fails(2, "backup", "--ping-url", url)


def samples(file: Path) -> dict[str, float]:
    """What Prometheus' own parser reads, by name and volume."""
    found = {}
    for family in text_string_to_metric_families(file.read_text()):
        assert family.type == "gauge" and family.documentation.endswith(".")
        for sample in family.samples:
            name = " ".join(filter(None, (sample.name, sample.labels.get("volume"))))
            assert name not in found
            found[name] = sample.value
    return found


def test_metrics_are_what_prometheus_reads(ready: Commands) -> None:
    file = ready.site.root / "sparsebak.prom"
    ready.settings(f'metrics = "{file}"\n')
    begun = time.time()
    assert backup(ready, "--verify")[0] == 0
    found, run = samples(file), samples(file.with_name("sparsebak-backup.prom"))
    status = ready.json("--agent", f"local:{ready.site.config}", "status")
    assert found["sparsebak_archive_stored_bytes"] == status["stored"]
    assert found["sparsebak_volume_sessions work/private"] == 1
    assert found["sparsebak_volume_verify_sound work/private"] == 1
    assert abs(found["sparsebak_volume_session_timestamp_seconds work/private"] - begun) < 60
    assert "sparsebak_scrub_timestamp_seconds" not in found, "what never was is left out"
    assert run["sparsebak_backup_exit_code"] == 0
    assert begun <= run["sparsebak_backup_start_timestamp_seconds"] + 0.001
    assert stat.S_IMODE(file.stat().st_mode) == 0o644, "the collector is another user"
    assert backup(ready, agent=False)[0] == 5
    assert samples(file.with_name("sparsebak-backup.prom"))["sparsebak_backup_exit_code"] == 5
    assert samples(file) == found, "a run that failed leaves them"


def test_status_writes_metrics_to_any_file(ready: Commands) -> None:
    assert backup(ready)[0] == 0
    ready.run("scrub")
    file = ready.site.root / "other.prom"
    ready.run("status", "--metrics", str(file), "--passphrase-file", str(ready.passphrase))
    found = samples(file)
    assert found["sparsebak_scrub_sound"] == 1 and found["sparsebak_scrub_never_bytes"] == 0
    assert "sparsebak_volume_size_bytes work/private" in found
    assert ".prom" in ready.fails(1, "status", "--metrics", str(ready.site.root / "x.txt"))
    assert "cannot write" in ready.fails(1, "status", "--metrics", "/nowhere/x.prom")


def test_names_of_any_kind_are_read_back() -> None:
    from backup_vm.reporting.metrics import _text

    evil = 'a"b\\c\nd}{ e=1'
    (family,) = text_string_to_metric_families(_text([("archive_chunks", {"archive": evil}, 3)]))
    assert family.samples[0].labels == {"archive": evil} and family.samples[0].value == 3


def test_who_has_the_archive_is_told_and_not_this_run_itself(ready: Commands) -> None:
    file = ready.site.root / "sparsebak.prom"
    ready.settings(f'metrics = "{file}"\n')
    assert backup(ready)[0] == 0
    assert "sparsebak_lease" not in file.read_text()
    other = Holder.this("backup")._replace(machine="another", host='n"as\n', process=77, since=99)
    LocalStorage(ready.site.archive).locks().put("writer-3", other.dump())
    ready.run("status", "--metrics", str(file))
    said = ready.run("status")[0]
    assert "Another run holds its lease: n" in said and ", process 77 (backup), since " in said
    (lease,) = ready.json("status")["leases"]
    assert lease["since"] == 99 and abs(lease["renewed"] - time.time()) < 60
    (sample,) = next(
        family.samples
        for family in text_string_to_metric_families(file.read_text())
        if family.name == "sparsebak_lease_renewed_timestamp_seconds"
    )
    assert sample.labels["process"] == "77" and sample.labels["host"] == lease["host"]
    assert sample.value == lease["renewed"]
    LocalStorage(ready.site.archive).locks().put("writer-4", b"\xff{[" * 99)
    assert "holder unknown" in ready.run("status")[0]
    ready.run("status", "--metrics", str(file))
    assert "sparsebak_lease_start" not in file.read_text()


def test_metrics_that_cannot_be_written_are_a_warning(ready: Commands) -> None:
    ready.settings('metrics = "/nowhere/x.prom"\n')
    code, _, said = backup(ready)
    assert code == 0 and said.count("the metrics were not written") == 2


def supplies(folder: Path, **kinds: dict[str, str]) -> Path:
    for name, fields in kinds.items():
        (folder / name).mkdir(parents=True)
        for field, text in fields.items():
            (folder / name / field).write_text(f"{text}\n")
    return folder


MAINS = {"type": "Mains", "online": "1"}
UNPLUGGED = {"type": "Mains", "online": "0"}
EMPTYING = {"type": "Battery", "status": "Discharging"}


@pytest.mark.parametrize(
    ("there", "battery"),
    [
        ({}, False),
        ({"AC": MAINS, "BAT0": EMPTYING}, False),
        ({"AC": UNPLUGGED, "BAT0": EMPTYING}, True),
        ({"AC": UNPLUGGED, "BAT0": {"type": "Battery", "status": "Full"}}, False),
        ({"BAT0": EMPTYING}, True),
        ({"mouse": EMPTYING | {"scope": "Device"}}, False),
        ({"ucsi": {"type": "USB", "online": "1"}, "BAT0": EMPTYING}, False),
        ({"broken": {}}, False),
    ],
)
def test_on_battery(tmp_path: Path, there: dict[str, dict[str, str]], battery: bool) -> None:
    folder = supplies(tmp_path / "power_supply", **there)
    if not battery:
        require_mains(folder)
        return
    with pytest.raises(NotNowError, match="battery"):
        require_mains(folder)


def test_a_backup_on_battery_waits(ready: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = supplies(ready.site.root / "power_supply", BAT0=EMPTYING)
    monkeypatch.setattr("backup_vm.surroundings._SUPPLIES", folder)
    monkeypatch.setattr("backup_vm.surroundings.require_mains.__defaults__", (folder,))
    assert backup(ready, "--not-on-battery")[0] == 13
    ready.settings("not_on_battery = true\n")
    assert backup(ready)[0] == 13 and ready.names() == []
    ready.settings("")
    assert backup(ready)[0] == 0


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A message bus of its own, in the place of the system's."""
    try:
        daemon = subprocess.Popen(
            ["dbus-daemon", "--session", "--nofork", "--print-address=1"],
            stdout=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        cannot("dbus-daemon is not installed")
    assert daemon.stdout is not None
    address = daemon.stdout.readline().strip()
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    yield address
    daemon.kill()
    daemon.wait()


@pytest.mark.parametrize(("metered", "waits"), [(0, False), (1, True), (2, False), (3, True)])
def test_a_metered_link(bus: str, metered: int, waits: bool) -> None:
    """Asked as busctl asks it, of a service with NetworkManager's name and property."""
    require_unmetered()  # nobody there knows
    over = threading.Event()
    thread = threading.Thread(target=manager, args=(bus, metered, over), daemon=True)
    thread.start()
    assert over.wait(PATIENCE)
    if waits:
        with pytest.raises(NotNowError, match="metered"):
            require_unmetered()
    else:
        require_unmetered()
    thread.join(PATIENCE)


def manager(address: str, metered: int, ready: threading.Event) -> None:
    """Answer one question as NetworkManager does."""
    from jeepney import HeaderFields, new_method_return
    from jeepney.bus_messages import message_bus
    from jeepney.io.blocking import open_dbus_connection

    with open_dbus_connection(address) as connection:
        connection.send_and_get_reply(message_bus.RequestName("org.freedesktop.NetworkManager"))
        ready.set()
        while True:
            call = connection.receive(timeout=PATIENCE)
            if call.header.fields.get(HeaderFields.member) == "Get":
                assert call.body == ("org.freedesktop.NetworkManager", "Metered")
                connection.send(new_method_return(call, "v", (("u", metered),)))
                return

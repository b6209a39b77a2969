# SPDX-License-Identifier: GPL-2.0-or-later
"""The systemd units, by systemd's own measure, and what happens to snapshots when the
package goes.
"""

import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import cannot
from tests.kit import GRAIN, Site, fill

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
SERVICES = sorted((ROOT / "systemd").rglob("*.service"))
TIMERS = sorted((ROOT / "systemd").rglob("*.timer"))
EXPOSURE = 4.0
"""What systemd-analyze security may say at most; 9.6 is a unit with nothing set. Root, LVM and
device nodes cost the rest.
"""


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_a_unit_may_little(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    last = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()[
        -1
    ]
    assert float(last.split(":")[1].split()[0]) <= EXPOSURE, last


def setting(unit: Path, name: str) -> list[str]:
    """What a unit says, one value for each line."""
    lines = unit.read_text().splitlines()
    values = [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]
    return [value.replace("%%", "%") for value in values]


def test_what_is_started_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """By the programs' own parsers: the units' command lines, and what dom0 has the backup
    VM run.
    """
    from backup_vm import cli as vm
    from dom0_agent.admin import cli as dom0
    from dom0_agent.admin.cli.backup import QUIET, SERVICE

    parsers = {"sparsebak": vm.parser, "sparsebak-agent": dom0.parser}
    started = [shlex.split(line) for unit in SERVICES for line in setting(unit, "ExecStart")]
    assert len(started) == len(SERVICES)
    for asked in (SERVICE, f"{QUIET}1"):
        service, _, argument = asked.partition("+")
        assert service == "qubes.VMExec"
        started.append([from_vmexec(part) for part in argument.split("+")])
    for program, *words in started:
        name = program.rpartition("/")[2]
        if name != "notify-send":
            assert parsers[name](words).parse_args(words).command in words, capsys.readouterr().err
    assert [words[0] for words in started].count("/usr/bin/sparsebak") == 4


def from_vmexec(part: str) -> str:
    """As core-agent-linux has it (``qubesagent/vmexec.py``): ``--`` is a dash, ``-HH`` any byte, no
    other dash is allowed.
    """
    assert re.fullmatch(r"(?:[a-zA-Z0-9._]|--|-[A-F0-9]{2})*", part)
    return re.sub(
        "--|-([A-F0-9]{2})", lambda found: chr(int(found[1], 16)) if found[1] else "-", part
    )


def confined(unit: Path) -> list[str]:
    """A command's beginning that leaves it no more privileges than a unit does; the rest of it
    needs systemd.
    """
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root, with setpriv, can give privileges away")
    kept = ",".join(
        "+" + name.lower().removeprefix("cap_")
        for line in setting(unit, "CapabilityBoundingSet")
        for name in line.split()
    )
    command = ["setpriv", f"--bounding-set=-all{',' * bool(kept)}{kept}", "--inh-caps=-all"]
    return command + ["--no-new-privs"] * (setting(unit, "NoNewPrivileges") == ["yes"])


@pytest.mark.parametrize("name", ["monitor", "check", "agent"])
def test_each_runs_with_what_its_unit_leaves_it(site: Site, name: str) -> None:
    unit = ROOT / f"systemd/dom0/sparsebak-{name}.service"
    fill(site.image(), 10 * GRAIN)
    site.backup()
    ((program, *words),) = (shlex.split(line) for line in setting(unit, "ExecStart"))
    command = [*confined(unit), str(BIN / program.rpartition("/")[2]), "--config", str(site.config)]
    if name == "agent":
        words += ["--listen", str(site.root / "sockets"), "--idle", "0.5"]
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_monitor_yields_to_everything_else() -> None:
    text = (ROOT / "systemd/dom0/sparsebak-monitor.service").read_text()
    assert "IOSchedulingClass=idle" in text and "Nice=19" in text and "--quiet" in text


@pytest.mark.parametrize("unit", TIMERS, ids=lambda unit: unit.stem)
def test_a_timer_is_due_when_a_machine_wakes_up(unit: Path, tmp_path: Path) -> None:
    """By the calendar: what counts time stands still while the machine sleeps (systemd.timer(5)).
    What was missed while it was off is made up for, but for what is due again within minutes.
    """
    if shutil.which("systemd-analyze") is None:
        cannot("systemd-analyze is not here")
    (tmp_path / unit.name).write_text(unit.read_text())
    service = unit.name.replace(".timer", ".service")
    (tmp_path / service).write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n")
    words = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    # of its own units, those of this machine are read, too
    complaints = [line for line in done.stderr.splitlines() if unit.stem in line]
    assert not complaints and done.returncode == 0, done.stderr
    names = {line.partition("=")[0] for line in unit.read_text().splitlines() if "=" in line}
    counted = {name for name in names if re.fullmatch(r"On(?!Calendar)\w+Sec", name)}
    (calendar,) = setting(unit, "OnCalendar")
    times = elapses(calendar)
    often = times[1] - times[0] < 3600
    assert not counted and often != (setting(unit, "Persistent") == ["true"])


@pytest.mark.parametrize(
    "unit",
    [one for one in TIMERS if one.parent.name.startswith("dom0")],
    ids=lambda unit: unit.stem,
)
def test_what_a_timer_of_dom0_starts_waits_for_qubesd_at_boot(unit: Path) -> None:
    """All of it asks qubesd; a timer by the calendar may be due as soon as there are timers."""
    assert "qubesd.service" in " ".join(setting(unit.with_suffix(".service"), "After")).split()


def elapses(calendar: str) -> tuple[float, float]:
    """The next two times, in Unix seconds, as systemd reads what a timer says."""
    words = ["systemd-analyze", "calendar", "--iterations=2", calendar]
    shown = subprocess.run(
        words, capture_output=True, text=True, check=True, env={**os.environ, "TZ": "UTC"}
    ).stdout
    first, second = (
        datetime.strptime(found, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
        for found in re.findall(r"(?:Next elapse|Iter\S* #2): \w+ (\S+ \S+) UTC", shown)
    )
    return first, second


def remove(site: Site, terminal: str) -> subprocess.CompletedProcess[str]:
    agent = site.root / "agent"
    code = "from dom0_agent.admin.cli import main; raise SystemExit(main())"
    agent.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    agent.chmod(0o755)
    environment = {
        **os.environ,
        "SPARSEBAK_AGENT_COMMAND": str(agent),
        "SPARSEBAK_AGENT_CONFIG": str(site.config),
    }
    environment |= {"SPARSEBAK_TERMINAL": terminal, "PYTHONPATH": str(ROOT)}
    command = [str(ROOT / "dom0_agent/admin/on-removal")]
    return subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_snapshots_go_only_when_somebody_says_so(site: Site, answer: str, left: int) -> None:
    fill(site.image(), 10 * GRAIN)
    site.backup()
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = remove(site, os.ttyname(theirs))
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0 and len(site.snapshots()) == left
    assert ("snapshots stay" in done.stderr) == bool(left)


def test_with_nobody_to_ask_snapshots_stay(site: Site) -> None:
    fill(site.image(), 10 * GRAIN)
    site.backup()
    assert "forget --all" in remove(site, str(site.root / "no-terminal")).stderr
    assert len(site.snapshots()) == 1


def test_the_account_of_upkeep_comes_with_the_packages(tmp_path: Path) -> None:
    """By systemd's own reading, it is the one that the unit names, with the home that it makes."""
    if shutil.which("systemd-sysusers") is None:
        cannot("systemd-sysusers is not here")
    unit = next(one for one in SERVICES if one.stem == "sparsebak-upkeep")
    (account,), (home,) = setting(unit, "User"), setting(unit, "StateDirectory")
    (tmp_path / "etc").mkdir()
    line = ROOT / "systemd/vm-sysusers" / f"{account}.conf"
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", line], check=True)
    rows = [row.split(":") for row in (tmp_path / "etc/passwd").read_text().splitlines()]
    (mine,) = [row for row in rows if row[0] == account]
    assert mine[5] == f"/var/lib/{home}" and mine[6].endswith("/nologin")

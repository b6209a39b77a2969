# SPDX-License-Identifier: GPL-2.0-or-later
"""The settings file, ``~/.config/sparsebak/config.toml``. Every option of it stands in
docs/config.toml with its meaning.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from backup_vm.errors import UsageError
from backup_vm.jobs.guard import Guard, taken
from backup_vm.jobs.keep_rules import Rules, parse_table
from backup_vm.paths import home, read_small
from backup_vm.quantities import parse_share, setting
from backup_vm.rate import parse_rate
from wire.names import BadName, parse_name, parse_volume_name

LARGEST = 1 << 20
"""Bytes that a settings file can have."""
TEXTS = (
    "agent",
    "archive",
    "require_mount",
    "caller",
    "limit_rate",
    "metrics",
    "ping_url",
    "parity",
    "pack_size",
)
SWITCHES = ("not_on_battery", "not_metered")
_AFTER, _FREE, _QUBES = "after_backup", "until_free", "qubes"


class Pruning(NamedTuple):
    """What prune does by itself. ``by_name``: rules for qubes and for volumes that have
    their own.
    """

    rules: Rules = Rules()
    by_name: Mapping[str, Rules] = {}
    after_backup: bool = False
    until_free: str = ""
    guard: Guard = Guard()

    def rules_for(self, qube: str, volume: str) -> Rules:
        """The rules of a volume, else of its qube, else of all."""
        return self.by_name.get(f"{qube}/{volume}") or self.by_name.get(qube) or self.rules


class Config(NamedTuple):
    """What the file says; ``texts`` holds those of TEXTS that it has, ``switches`` those of
    SWITCHES that are on.
    """

    texts: Mapping[str, str] = {}
    switches: frozenset[str] = frozenset()
    pruning: Pruning = Pruning()


def settings_file(given: Path | None) -> Path | None:
    """Where settings are: the file given, else the user's; None for a user without a home."""
    if given is not None:
        return given
    folder, own = os.environ.get("XDG_CONFIG_HOME"), home()
    if folder:
        return Path(folder) / "sparsebak/config.toml"
    return own and own / ".config/sparsebak/config.toml"


def load(given: Path | None, to_come: bool = False) -> Config:
    """Read and check the settings; none is fine unless a file was named, which is only ``to_come``
    where a command is about to make it. Raise UsageError.
    """
    path = settings_file(given)
    if path is None:
        return Config()
    try:
        raw = read_small(path, LARGEST, "settings")
    except FileNotFoundError:
        if given is None or to_come:
            return Config()
        raise UsageError(f"{path}: there is no such file") from None
    except OSError as error:
        raise _unreadable(path, error, given is not None) from None
    import tomllib

    try:
        return _check(tomllib.loads(raw.decode("utf-8-sig")))  # editors of Windows put a mark first
    except UnicodeDecodeError:
        raise UsageError(f"{path}: it is not UTF-8") from None
    except (tomllib.TOMLDecodeError, BadName, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}") from None


def _unreadable(path: Path, error: OSError, named: bool) -> UsageError:
    """Why settings cannot be read; of a file that nobody named also why it is looked for there."""
    if named:
        return UsageError(f"{path}: {error.strerror}")
    variable = "XDG_CONFIG_HOME" if os.environ.get("XDG_CONFIG_HOME") else "HOME"
    return UsageError(
        f"the settings, {path}, cannot be read: {error.strerror}",
        f"set {variable} to a folder of this user, or give --config FILE ({os.devnull} for none)",
    )


def _check(raw: dict[str, Any]) -> Config:
    pruning = raw.pop("prune", {})
    switches = {key: raw.pop(key) for key in SWITCHES if key in raw}
    for key, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{key} must be true or false")
    for key, value in raw.items():
        if key not in TEXTS or not isinstance(value, str) or not value.isprintable():
            raise ValueError(
                f"{key!r} is not a setting (a text); known are {', '.join(TEXTS)},"
                f" {', '.join(SWITCHES)} (true or false), and [prune]"
            )
    if "limit_rate" in raw:
        setting("limit_rate", parse_rate, raw["limit_rate"])
    if "pack_size" in raw:
        from backup_vm.archive.pack_size import parse_pack_size

        setting("pack_size", parse_pack_size, raw["pack_size"])
    if "parity" in raw:
        setting("parity", parse_share, raw["parity"])
    if not isinstance(pruning, dict):
        raise ValueError("prune must be a table: [prune]")
    on = frozenset(key for key, value in switches.items() if value)
    return Config(raw, on, _pruning(pruning))


def _pruning(raw: dict[str, Any]) -> Pruning:
    qubes = raw.pop(_QUBES, {})
    after, until = raw.pop(_AFTER, False), raw.pop(_FREE, "")
    raw, guard = taken(raw)
    if not isinstance(after, bool):
        raise ValueError(f"{_AFTER} must be true or false")
    if not isinstance(until, str):
        raise ValueError(f'{_FREE} must be a text such as "10%"')
    if not isinstance(qubes, dict) or not all(isinstance(rules, dict) for rules in qubes.values()):
        raise ValueError("rules of a qube belong in a table of their own: [prune.qubes.NAME]")
    for name in qubes:
        _ = parse_volume_name(name) if "/" in name else parse_name(name, "qube")
    return Pruning(
        parse_table(raw, "prune"),
        {name: parse_table(rules, f"prune.qubes.{name}") for name, rules in qubes.items()},
        after,
        until,
        guard,
    )

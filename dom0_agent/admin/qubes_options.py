# SPDX-License-Identifier: GPL-2.0-or-later
"""The table ``[qubes]`` of agent.toml: which qubes are backed up, and how. Without Qubes OS it
means nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from dom0_agent.config import DATA_LIMIT, METADATA_LIMIT, Config, ConfigError, limits
from wire.names import parse_name

TAG_PREFIX = "@tag:"


@dataclass(frozen=True)
class QubesOptions:
    """What catalog ``qubes`` takes. ``include`` and ``exclude`` hold names, and tags written
    ``@tag:NAME``.

    ``running``: of a running qube the ``live`` volume, or the ``committed`` one that it started
    from. ``settings``: whether each qube's settings go along. ``tag_new``: whether a qube made
    since setup may be backed up without another setup. ``dom0_config``: files and folders of dom0
    for ``dom0/config``; none for no such volume. ``machine``: whether packages, partition tables
    and the like go along with these, ``luks_headers``: whether the headers of LUKS containers do.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    running: str = "live"
    settings: bool = True
    tag_new: bool = True
    dom0_config: tuple[str, ...] = ("/etc/qubes", "/srv/salt", "/srv/pillar", "/home")
    machine: bool = True
    luks_headers: bool = False
    data_limit: int = DATA_LIMIT
    metadata_limit: int = METADATA_LIMIT


def qubes_options(config: Config) -> QubesOptions:
    """The table of a configuration, checked; raise ConfigError."""
    try:
        return _check(config.qubes)
    except ValueError as error:
        raise ConfigError(f"{config.path}: {error}") from None


def _check(entry: Mapping[str, Any]) -> QubesOptions:
    known = QubesOptions.__dataclass_fields__
    if unknown := sorted(set(entry) - set(known)):
        raise ValueError(f"[qubes] has no setting {unknown[0]!r}; known are {', '.join(known)}")
    for key in ("include", "exclude"):
        for name in _texts(entry, key):
            parse_name(name.removeprefix(TAG_PREFIX), f"[qubes] {key}")
    if entry.get("running", "live") not in ("live", "committed"):
        raise ValueError("[qubes] running must be 'live' or 'committed'")
    for key in ("settings", "tag_new", "machine", "luks_headers"):
        if not isinstance(entry.get(key, True), bool):
            raise ValueError(f"[qubes] {key} must be true or false")
    if relative := [
        text for text in _texts(entry, "dom0_config") if not PurePosixPath(text).is_absolute()
    ]:
        raise ValueError(f"[qubes] dom0_config: {relative[0]!r} must be an absolute path")
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    return QubesOptions(**options | limits(entry))


def _texts(entry: Mapping[str, Any], key: str) -> list[str]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"[qubes] {key} must be a list of texts")
    return value

# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's configuration, ``agent.toml``: written by dom0's administrator and trusted, but
checked all the same.
"""

import os
import re
import stat
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self, TypeVar

from wire import CHUNK_SIZES, DEDUP_DOMAIN_SIZE
from wire.names import BadName, parse_name, parse_volume_name

DEFAULT_PATH = Path("/etc/sparsebak/agent.toml")
DRIVERS = {
    "file": ("sources.file", "targets.file"),
    "reflink": ("sources.reflink", "targets.file"),
    "lvm_thin": ("sources.lvm_thin", "targets.lvm"),
    "zfs": ("sources.zfs", "targets.zfs"),
}
"""Kinds of storage, and the modules behind each, which the resident agent imports before any call.
"""
ZVOLS = Path("/dev/zvol")
"""Where udev has a link to the device of each ZFS volume, by its name."""
CATALOGS = ("static", "qubes")
DATA_LIMIT, METADATA_LIMIT = 95, 90
"""Percent up to which a pool is filled where nothing else is said."""
LEVEL = 2
"""Level of zstd where nothing else is said."""
Entry = TypeVar("Entry")

_ZFS_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,255}(/[A-Za-z0-9_.:-]{1,255})*", re.ASCII)
_LVM_NAME = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,125}", re.ASCII)


class ConfigError(Exception):
    """The configuration cannot be used; the text says where and why."""


class Pool(NamedTuple):
    """A place that holds volumes: a directory; with driver ``lvm_thin`` a thin pool in a volume
    group; with driver ``zfs`` a dataset, ``path`` being where the devices of its volumes are.

    The limits, in percent, are how full the pool (of a thin pool its data, and its metadata) may be
    before snapshots are refused.
    """

    name: str
    driver: str
    path: Path = Path()
    volume_group: str = ""
    thin_pool: str = ""
    data_limit: int = DATA_LIMIT
    metadata_limit: int = METADATA_LIMIT


class _Volume(NamedTuple):
    qube: str
    volume: str
    pool: Pool
    vid: str
    live: str
    dedup_domain: bytes
    identity: str


class Volume(_Volume):
    """A volume: qube and volume name, and ``vid``, its image's path relative to its pool, or its
    logical volume.

    ``live``: where the data is while the qube runs, if elsewhere: there when that exists.
    ``dedup_domain``: 16 bytes; volumes of one deduplication domain share chunks in an archive.
    ``identity``: of its qube (dom0_agent.tracking.identities); its name where nothing else is
    said.
    """

    def __new__(
        cls,
        qube: str,
        volume: str,
        pool: Pool,
        vid: str,
        live: str = "",
        dedup_domain: bytes = bytes(DEDUP_DOMAIN_SIZE),  # noqa: B008
        identity: str = "",
    ) -> Self:
        """Without an ``identity`` it is the qube's name, as of one that never had another."""
        return super().__new__(cls, qube, volume, pool, vid, live, dedup_domain, identity or qube)

    @property
    def name(self) -> str:
        """``qube/volume``."""
        return f"{self.qube}/{self.volume}"


def remember(volume: Volume) -> dict[str, Any]:
    """A volume in the form that a state file can hold."""
    pool = {**volume.pool._asdict(), "path": str(volume.pool.path)}
    return {**volume._asdict(), "pool": pool, "dedup_domain": volume.dedup_domain.hex()}


def recall(raw: dict[str, Any]) -> Volume:
    """Undo remember."""
    pool = Pool(**{**raw["pool"], "path": Path(raw["pool"]["path"])})
    return Volume(**{**raw, "pool": pool, "dedup_domain": bytes.fromhex(raw["dedup_domain"])})


class Config(NamedTuple):
    """What agent.toml says. ``threads``, ``compression_level`` and ``chunk_padding`` (bytes)
    concern Extract. ``qubes``: the table of that name as it stands there; only the administrator's
    commands look into it (dom0_agent.admin.qubes_options).
    """

    path: Path
    state_dir: Path
    volumes: tuple[Volume, ...]
    threads: int = 2
    # Level 3 saves 1.4 % of the space for a quarter more of the time that compressing takes, level
    # 1 costs 1 % and gains nothing that is noticed: a backup is then bound by hashes and the disk.
    compression_level: int = LEVEL
    chunk_padding: int = 0
    allow_restore: frozenset[tuple[str, str]] = frozenset()
    catalog: str = "static"
    qubes: Mapping[str, Any] = {}


_TICK = 2_000_000_000
"""Nanoseconds for which a file must have been as it is, to be remembered: two changes within one
tick of its file system's clock have one time."""
_LARGEST = 16 << 20
_known: dict[Path, tuple[tuple[object, ...], Config]] = {}


def load(path: Path) -> Config:
    """Read and check a configuration file, or raise ConfigError.

    One that is as it was when this process, or the one that it was forked from, read it is not read
    again: 400 volumes take as long as all else in a call.
    """
    try:
        # Not to wait for whoever writes to a FIFO.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            status, now = os.fstat(file.fileno()), time.time_ns()
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
                raise ConfigError(f"{path}: not a regular file of at most {_LARGEST >> 20} MiB")
            same = (path.resolve(), status.st_dev, status.st_ino, status.st_size)
            version = (*same, status.st_mtime_ns, status.st_ctime_ns)
            if path in _known and _known[path][0] == version:
                return _known[path][1]
            raw = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        config = _check(path, raw)
    except (BadName, KeyError, TypeError, ValueError) as error:
        text = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{path}: {text}") from None
    if status.st_ctime_ns < now - _TICK:
        _known[path] = version, config
    return config


def _check(path: Path, raw: dict[str, Any]) -> Config:
    known = set(Config._fields) - {"path", "volumes"} | {"pool", "volume"}
    if unknown := sorted(set(raw) - known):
        raise ValueError(f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
    catalog = raw.get("catalog", "static")
    if catalog not in CATALOGS:
        raise ValueError(f"catalog {catalog!r} is not one of {', '.join(CATALOGS)}")
    if catalog == "qubes" and ("pool" in raw or "volume" in raw):
        raise ValueError(
            "with catalog 'qubes' pools and volumes come from qubesd; leave [[pool]] and"
            " [[volume]] out"
        )
    base = path.resolve().parent
    every = _each(raw, "pool", lambda entry: _pool(entry, base))
    pools = {pool.name: pool for pool in every}
    for pool in every:
        if pools[pool.name] is not pool:
            raise ValueError(f"pool {pool.name} is listed twice")
    volumes = tuple(_each(raw, "volume", lambda entry: _volume(entry, pools)))
    for places in ([v.name for v in volumes], [str(v.pool.path / v.vid) for v in volumes]):
        twice = next((place for place in places if places.count(place) > 1), None)
        if twice is not None:
            raise ValueError(f"volume {twice} is listed twice")
    return Config(
        path=path,
        state_dir=base / _path(raw, "state_dir"),
        volumes=volumes,
        threads=_number(raw, "threads", min(os.cpu_count() or 1, 4), 1, 64),
        compression_level=_number(raw, "compression_level", LEVEL, 1, 19),
        chunk_padding=_number(raw, "chunk_padding", 0, 0, CHUNK_SIZES[-1]),
        allow_restore=frozenset(_each(raw, "allow_restore", _allowed)),
        catalog=catalog,
        qubes=_table(raw, "qubes"),
    )


def _pool(entry: dict[str, Any], base: Path) -> Pool:
    driver, name = _text(entry, "driver"), parse_name(_text(entry, "name"), "pool")
    if driver not in DRIVERS:
        raise ValueError(f"pool {name}: driver {driver!r} is not one of {', '.join(DRIVERS)}")
    own = {
        "lvm_thin": {"volume_group", "thin_pool", "metadata_limit"},
        "zfs": {"dataset"},
    }.get(driver, {"path"})
    if unknown := sorted(set(entry) - own - {"name", "driver", "data_limit"}):
        raise ValueError(f"pool {name}: a pool of driver {driver} has no setting {unknown[0]!r}")
    if driver == "zfs":
        return Pool(name, driver, devices(_text(entry, "dataset")), "", "", **limits(entry))
    if driver != "lvm_thin":
        return Pool(name, driver, base / _path(entry, "path"), "", "", **limits(entry))
    group, pool = _text(entry, "volume_group"), _text(entry, "thin_pool")
    if not (_lvm_name(group) and _lvm_name(pool)):
        raise ValueError(
            f"pool {name}: {group!r} and {pool!r} must be names of a volume group and a thin pool"
        )
    return Pool(name, driver, Path("/dev") / group, group, pool, **limits(entry))


def devices(name: str) -> Path:
    """Where udev has the devices of the volumes below a ZFS dataset; raise ValueError for what is
    no name of one (zfs(8), "ZFS Components").
    """
    if not _zfs_name(name):
        raise ValueError(f"{name!r} must be the name of a ZFS dataset")
    return ZVOLS / name


def dataset(pool: Pool) -> str:
    """Undo devices."""
    return str(pool.path.relative_to(ZVOLS))


def limits(entry: Mapping[str, Any]) -> dict[str, int]:
    """How full a pool may be, as an entry of it says; raise ValueError."""
    return {
        key: _number(entry, key, default, 1, 100)
        for key, default in (("data_limit", DATA_LIMIT), ("metadata_limit", METADATA_LIMIT))
    }


def _zfs_name(name: str) -> bool:
    parts = name.split("/")
    return _ZFS_NAME.fullmatch(name) is not None and not {".", ".."} & set(parts)


def _lvm_name(name: str) -> bool:
    """Whether LVM would take this for a name (lvm(8), "VALID NAMES")."""
    return _LVM_NAME.fullmatch(name) is not None and name not in (".", "..")


def _volume(entry: dict[str, Any], pools: dict[str, Pool]) -> Volume:
    qube, volume = (
        parse_name(_text(entry, "qube"), "qube"),
        parse_name(_text(entry, "volume"), "volume"),
    )
    name, vid = _text(entry, "pool"), _text(entry, "vid")
    if name not in pools:
        raise ValueError(f"volume {qube}/{volume}: there is no pool {name!r}")
    pool = pools[name]
    if pool.driver == "lvm_thin":
        group, _, lv = vid.rpartition("/")
        if group not in ("", pool.volume_group) or not _lvm_name(lv):
            raise ValueError(
                f"volume {qube}/{volume}: vid {vid!r} must be a logical volume of group"
                f" {pool.volume_group}"
            )
        return Volume(qube, volume, pool, lv)
    if pool.driver == "zfs" and not _zfs_name(vid):
        raise ValueError(
            f"volume {qube}/{volume}: vid {vid!r} must be the name of a ZFS volume, from pool"
            f" {pool.name}'s dataset on"
        )
    if (
        PurePosixPath(vid).is_absolute()
        or ".." in PurePosixPath(vid).parts
        or not vid
        or "\0" in vid
    ):
        raise ValueError(f"volume {qube}/{volume}: vid {vid!r} must be a path inside the pool")
    return Volume(qube, volume, pool, str(PurePosixPath(vid)))


def _allowed(entry: dict[str, Any]) -> tuple[str, str]:
    for key in ("from", "to"):
        try:
            parse_volume_name(_text(entry, key))
        except BadName as error:
            raise ValueError(f"allow_restore: {key} is not a volume: {error}") from None
    return entry["from"], entry["to"]


def _table(raw: dict[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be a table: [{key}]")
    return value


def _each(raw: dict[str, Any], key: str, read: Callable[[dict[str, Any]], Entry]) -> list[Entry]:
    """What each table of a list of them says."""
    value = raw.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"{key} must be tables, each of which begins with [[{key}]]")
    try:
        return [read(entry) for entry in value]
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} is missing in a [[{key}]]") from None


def _text(entry: dict[str, Any], key: str) -> str:
    if not isinstance(entry[key], str):
        raise ValueError(f"{key} must be a text")
    return str(entry[key])


def _path(entry: dict[str, Any], key: str) -> str:
    """A path. ``~`` is another folder for each user who runs a command, and a state directory must
    be one: refused, where it would be the name of a folder.
    """
    text = _text(entry, key)
    if text.startswith("~") or not text or "\0" in text:
        raise ValueError(f"{key} {text!r} must be a path, written out from / or from this file on")
    return text


def _number(raw: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = raw.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{key} must be a number from {low} to {high}")
    return value

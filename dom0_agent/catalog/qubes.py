"""Catalog ``qubes``: what qubesd knows, asked through qubesadmin in as few calls as can be.

One call lists the qubes and their states, one each gives a qube's properties and those of a volume.
Classes of qubes and drivers of pools are those of Qubes OS 4.1 and later (core-admin, ``qubes/vm``
and ``qubes/storage``).
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from dom0_agent.catalog import Skipped
from dom0_agent.config import TAG_PREFIX, Config, Pool, Volume
from dom0_agent.qubesd import asking, connect
from wire.names import BadName, parse_name
from wire.status import Code, Refused

SETTINGS = "settings"
"""The volume that holds a qube's settings."""
CONFIG = ("dom0", "config")
"""The volume that holds dom0's own configuration."""
_KEEPS = {
    "AppVM": ("private",),
    "TemplateVM": ("root", "private"),
    "StandaloneVM": ("root", "private"),
    "DispVM": (),  # of one with a name, such as sys-usb, the settings
}
"""Volumes that may hold data worth keeping, by class; whether they do, save_on_stop says."""
_WHY_NOT = {
    "RemoteVM": "it is on another machine",
    "AdminVM": "its configuration is dom0/config",
}


class QubesCatalog:
    """See Catalog."""

    def __init__(self, config: Config, caller: str = "") -> None:
        self._config, self._options, self._caller = config, config.qubes, caller
        self._pools: dict[str, Pool | str] = {}

    @cached_property
    def _app(self) -> Any:
        return connect()

    def volumes(self) -> tuple[Volume, ...]:
        """See Catalog."""
        return tuple(found for found in self._everything if isinstance(found, Volume))

    def skipped(self) -> tuple[Skipped, ...]:
        """See Catalog."""
        return tuple(found for found in self._everything if isinstance(found, Skipped))

    def find(self, qube: str, volume: str, restoring: bool = False) -> Volume | None:
        """See Catalog."""
        with asking():
            if (qube, volume) == CONFIG:
                return self._config_volume() if self._options.dom0_config or restoring else None
            if qube not in self._app.domains:
                return None
            found = self._of(self._app.domains[qube], restoring)
            return next((v for v in found if isinstance(v, Volume) and v.volume == volume), None)

    def absent(self, qube: str) -> Volume:
        """See Catalog."""
        with asking():
            if qube in self._app.domains:
                raise Refused(
                    Code.DENIED, f"{qube} exists, so that the call must name it as its target"
                )
        return self._settings_volume(qube)

    @cached_property
    def _everything(self) -> list[Volume | Skipped]:
        with asking():
            found: list[Volume | Skipped] = (
                [self._config_volume()] if self._options.dom0_config else []
            )
            domains = sorted(self._app.domains, key=lambda domain: str(domain.name))
        for domain in domains:
            try:
                with asking():
                    found += list(self._of(domain))
            except (Refused, KeyError, ValueError) as error:  # the others are backed up
                if _is_there(str(domain.name)):  # it may have gone meanwhile, as disposables do
                    found.append(Skipped(str(domain.name), str(error), failed=True))
        return found

    def _of(self, domain: Any, restoring: bool = False) -> Iterator[Volume | Skipped]:
        """All volumes of a qube, or why there are none. What is restored need not be backed up any
        more.
        """
        name, klass = str(domain.name), str(domain.klass)
        if klass == "AdminVM":
            return
        reason = self._left_out(domain, name, klass)
        if reason is not None and not (restoring and klass in _KEEPS and _lasts(domain, klass)):
            yield Skipped(name, reason)
            return
        running = domain.is_running()
        for volume in _KEEPS[klass]:
            yield self._volume(name, volume, klass, running)
        if self._options.settings or restoring:
            yield self._settings_volume(name)

    def _left_out(self, domain: Any, name: str, klass: str) -> str | None:
        """Why a qube is not backed up, in words; None when it is."""
        try:
            parse_name(name, "qube")
        except BadName as error:
            return str(error)
        if not _lasts(domain, klass):
            return "a disposable keeps nothing"
        if klass not in _KEEPS:
            return _WHY_NOT.get(klass, f"class {klass} is not known to keep anything")
        if self._matches(self._options.exclude, domain, name):
            return "it is in the list 'exclude'"
        if name == self._caller and name not in self._options.include:
            return "it is the backup qube itself; name it in the list 'include' to have it too"
        if not domain.include_in_backups and not self._matches(self._options.include, domain, name):
            return "its property include_in_backups is off"
        return None

    def _matches(self, wanted: tuple[str, ...], domain: Any, name: str) -> bool:
        if name in wanted:
            return True
        tags = [text.removeprefix(TAG_PREFIX) for text in wanted if text.startswith(TAG_PREFIX)]
        return bool(tags) and not set(tags).isdisjoint(domain.tags)

    def _volume(self, qube: str, volume: str, klass: str, running: bool) -> Volume | Skipped:
        raw = self._app.qubesd_call(qube, "admin.vm.volume.Info", volume).decode(
            "ascii"
        )  # all of it in one call
        info = dict(line.split("=", 1) for line in raw.splitlines())
        if info["save_on_stop"] != "True":
            return Skipped(f"{qube}/{volume}", "it is not kept when the qube stops")
        pool = self._pool(info["pool"])
        if isinstance(pool, str):
            return Skipped(f"{qube}/{volume}", pool)
        live = running and self._options.running == "live"
        if pool.driver == "lvm_thin":
            vid = info["vid"].rpartition("/")[2]
            places = vid, f"{vid}-snap" if live else ""
        else:
            places = f"{info['vid']}.img", f"{info['vid']}-dirty.img" if live else ""
        # a standalone's root is what runs in it: to share chunks with it would let another learn
        # them
        shared = "root" if volume == "root" and klass == "TemplateVM" else f"{qube}/{volume}"
        return Volume(qube, volume, pool, *places, dedup_domain=_dedup_domain(shared), managed=True)

    def _pool(self, name: str) -> Pool | str:
        """The pool, or why its volumes cannot be backed up."""
        if name not in self._pools:
            self._pools[name] = self._read_pool(name)
        return self._pools[name]

    def _read_pool(self, name: str) -> Pool | str:
        pool = self._app.pools[name]
        driver, config = str(pool.driver), pool.config
        if driver == "lvm_thin":
            limits = (self._options.data_limit, self._options.metadata_limit)
            group = str(config["volume_group"])
            return Pool(
                name, "lvm_thin", Path("/dev") / group, group, str(config["thin_pool"]), *limits
            )
        if driver == "file-reflink":
            limit = self._options.data_limit
            return Pool(name, "reflink", Path(str(config["dir_path"])), data_limit=limit)
        return f"pool {name} has driver {driver}; lvm_thin and file-reflink are supported"

    def _config_volume(self) -> Volume:
        pool = Pool(SETTINGS, "settings", self._config.state_dir / SETTINGS)
        return Volume(
            *CONFIG,
            pool,
            "/".join(CONFIG),
            dedup_domain=_dedup_domain("/".join(CONFIG)),
            files=self._options.dom0_config,
        )

    def _settings_volume(self, qube: str) -> Volume:
        name, pool = (
            f"{qube}/{SETTINGS}",
            Pool(SETTINGS, "settings", self._config.state_dir / SETTINGS),
        )
        return Volume(qube, SETTINGS, pool, name, dedup_domain=_dedup_domain(name))


def _is_there(qube: str) -> bool:
    """Whether a qube exists now, past what is remembered; yes if that cannot be told."""
    try:
        with asking():
            return qube in connect().domains
    except Refused:
        return True


def _lasts(domain: Any, klass: str) -> bool:
    """Whether a qube outlives its being shut down: all but the disposables that go by
    themselves.
    """
    return klass != "DispVM" or not getattr(domain, "auto_cleanup", True)


def _dedup_domain(name: str) -> bytes:
    """A deduplication domain: the roots of all templates are one, each other volume is one."""
    return hashlib.blake2b(name.encode(), digest_size=16, person=b"sparsebak domain").digest()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What qubesd knows of qubes and their volumes, asked through qubesadmin in as few calls as can be.

One call lists the qubes and their states, one each gives a qube's properties and those of a volume.
Classes of qubes and drivers of pools are those of Qubes OS 4.1 and later (core-admin, ``qubes/vm``
and ``qubes/storage``).
"""

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from common.existing import is_file
from common.override import override
from common.text import session_name
from dom0_agent.admin.qubes_options import TAG_PREFIX, QubesOptions
from dom0_agent.admin.renaming import followed
from dom0_agent.catalog import (
    CONFIG,
    SETTINGS,
    Skipped,
    VolumeCatalog,
    dedup_domain,
    identified,
)
from dom0_agent.catalog.kept import OWN
from dom0_agent.config import Config, Pool, Volume, dataset, devices
from dom0_agent.qubesd import asking, connect
from dom0_agent.tracking.identities import Identities, load
from wire.names import BadName, parse_name
from wire.status import Code, Refused

SETTINGS_AGE = 86400
"""Seconds for which what was taken down of settings counts as what they are."""
_KEEPS = {
    "AppVM": ("private",),
    "TemplateVM": ("root", "private"),
    "StandaloneVM": ("root", "private"),
    "DispVM": (),  # of one with a name, such as sys-usb, the settings
}
"""Volumes that may hold data worth keeping, by class; whether they do, save_on_stop says."""
_NO_SNAPSHOTS = "-1"
"""What ``revisions_to_keep`` says where a qube writes to its one volume itself (Qubes OS 4.3)."""
_WHY_NOT = {
    "RemoteVM": "it is on another machine",
    "AdminVM": "its configuration is dom0/config",
}


class QubesCatalog(VolumeCatalog):
    """See VolumeCatalog."""

    age = 0.0

    def __init__(
        self,
        config: Config,
        options: QubesOptions,
        caller: str = "",
        keep: Callable[[Mapping[str, str]], Identities] | None = None,
    ) -> None:
        """``keep``: is given the UUIDs of qubes by name, and says who is who; else what was kept
        last says it.
        """
        self._config, self._options, self._caller = config, options, caller
        self._keep = keep or (lambda listed: followed(load(config.state_dir), listed))
        self._pools: dict[str, Pool | str] = {}
        self._qubes: list[str] = []
        self._identities, self._listed = Identities(), dict[str, str]()

    @cached_property
    def _app(self) -> Any:
        return connect()

    @override
    def volumes(self) -> tuple[Volume, ...]:
        return tuple(found for found in self._everything if isinstance(found, Volume))

    @override
    def skipped(self) -> tuple[Skipped, ...]:
        return tuple(found for found in self._everything if isinstance(found, Skipped))

    def qubes(self) -> tuple[str, ...]:
        """Names of the qubes that are backed up, of which there may be nothing but settings."""
        return tuple(self._qubes) if self._everything else ()

    @property
    def identities(self) -> Identities:
        """Who is who among the qubes as they are now."""
        self.volumes()  # all are listed for it
        return self._identities

    @property
    def listed(self) -> Mapping[str, str]:
        """UUIDs of all qubes that last, by name; nothing for one without."""
        self.volumes()
        return self._listed

    def domain(self, qube: str) -> Any:
        """What qubesadmin knows of a qube, as it was when the catalog was asked; raise KeyError."""
        return self._app.domains[qube]

    @override
    def find(self, qube: str, volume: str, left_out: bool = False) -> Volume | None:
        """With ``left_out`` also one that is not backed up."""
        with _understood(qube), asking():
            if qube == "dom0":
                found = self._document(*CONFIG)
            elif qube in self._app.domains:
                found = self._of(self._app.domains[qube], left_out)
            else:
                return None
            identities = self.identities
            for one in found:
                if one.name == f"{qube}/{volume}" and isinstance(one, Volume):
                    return identified(one, identities)
                if one.name == f"{qube}/{volume}" and isinstance(one, Skipped) and one.failed:
                    raise Refused(Code.INTERNAL, f"{one.name}: {one.reason}")
            return None

    @cached_property
    def _everything(self) -> list[Volume | Skipped]:
        with asking():
            found: list[Volume | Skipped] = [*self._document(*CONFIG)]
            uuids = dict[str, str]()
            domains = sorted(self._app.domains, key=lambda domain: str(domain.name))
        for domain in domains:
            name = str(domain.name)
            try:
                with asking():
                    of_it = list(self._of(domain))
                    if str(domain.klass) != "AdminVM" and lasts(domain, str(domain.klass)):
                        uuids[name] = str(getattr(domain, "uuid", ""))
            except (Refused, KeyError, ValueError) as error:  # the others are backed up
                if _is_there(name):  # it may have gone meanwhile, as disposables do
                    found.append(Skipped(name, str(error), failed=True))
                continue
            found += of_it
            if str(domain.klass) != "AdminVM" and not any(one.name == name for one in of_it):
                self._qubes.append(name)
        self._listed = {name: uuid for name, uuid in uuids.items() if _is_name(name)}
        self._identities = self._keep(self._listed)
        return [
            identified(one, self._identities) if isinstance(one, Volume) else one
            for one in found
            if not _is_without_document(one)
        ]

    def _of(self, domain: Any, left_out: bool = False) -> Iterator[Volume | Skipped]:
        """All volumes of a qube, or why there are none."""
        name, klass = str(domain.name), str(domain.klass)
        if klass == "AdminVM":
            return
        reason = self._left_out(domain, name, klass)
        if reason is not None and not (left_out and klass in _KEEPS and lasts(domain, klass)):
            yield Skipped(name, reason)
            return
        for volume in _KEEPS[klass]:
            yield self._volume(name, volume, klass)
        yield from self._document(name, SETTINGS)

    def _left_out(self, domain: Any, name: str, klass: str) -> str | None:
        """Why a qube is not backed up, in words; None when it is."""
        try:
            parse_name(name, "qube")
        except BadName as error:
            return str(error)
        if not lasts(domain, klass):
            return "a disposable keeps nothing"
        if klass not in _KEEPS:
            return _WHY_NOT.get(klass, f"class {klass} is not known to keep anything")
        if name == self._caller and name not in self._options.include:
            return OWN
        return self._unwanted(domain, name)

    def _unwanted(self, domain: Any, name: str) -> str | None:
        """Whether the user wants no backup of a qube, or of dom0, in words; None when he does."""
        if self._matches(self._options.exclude, domain, name):
            return "it is in the list 'exclude'"
        if getattr(domain, "include_in_backups", True) or self._matches(
            self._options.include, domain, name
        ):
            return None
        return "its property include_in_backups is off"

    def config_unwanted(self) -> str | None:
        """Why dom0's configuration is not backed up, empty where none is configured; None when it
        is.
        """
        if not self._options.dom0_config:
            return ""
        with asking():
            return self._unwanted(self._app.domains[CONFIG[0]], CONFIG[0])

    def _matches(self, wanted: tuple[str, ...], domain: Any, name: str) -> bool:
        if name in wanted:
            return True
        tags = [text.removeprefix(TAG_PREFIX) for text in wanted if text.startswith(TAG_PREFIX)]
        return bool(tags) and not set(tags).isdisjoint(domain.tags)

    def _volume(self, qube: str, volume: str, klass: str) -> Volume | Skipped:
        # All that is known of the volume, in one call.
        raw = self._app.qubesd_call(qube, "admin.vm.volume.Info", volume).decode("ascii")
        info = dict(line.split("=", 1) for line in raw.splitlines())
        if info["save_on_stop"] != "True":
            return Skipped(f"{qube}/{volume}", "it is not kept when the qube stops")
        pool = self._pool(info["pool"])
        if isinstance(pool, str):
            return Skipped(f"{qube}/{volume}", pool, unsupported=True)
        live = self._options.running == "live"
        if pool.driver == "zfs":
            if not live:
                text = "volumes in ZFS are backed up as they are now, so that 'running' must be"
                return Skipped(f"{qube}/{volume}", f"{text} 'live'", failed=True)
            container, vid = dataset(pool), str(info["vid"])
            if not vid.startswith(f"{container}/"):
                return Skipped(f"{qube}/{volume}", f"{vid} is not in {container}", failed=True)
            places = vid.removeprefix(f"{container}/"), ""
            return self._found(qube, volume, klass, pool, places)
        if info["revisions_to_keep"] == _NO_SNAPSHOTS and not live:
            text = (
                "it has no snapshots (revisions_to_keep -1), so that a running qube has nothing"
                " but its live data; set running = 'live', or give it snapshots: qvm-volume config"
                f" {qube}:{volume} revisions_to_keep 0"
            )
            return Skipped(f"{qube}/{volume}", text, failed=True)
        if pool.driver == "lvm_thin":
            vid = info["vid"].rpartition("/")[2]
            places = vid, f"{vid}-snap" if live else ""
        else:
            places = f"{info['vid']}.img", f"{info['vid']}-dirty.img" if live else ""
        return self._found(qube, volume, klass, pool, places)

    @staticmethod
    def _found(qube: str, volume: str, klass: str, pool: Pool, places: tuple[str, str]) -> Volume:
        # a standalone's root is what runs in it: to share chunks with it would let another learn
        # them
        shared = "root" if volume == "root" and klass == "TemplateVM" else f"{qube}/{volume}"
        return Volume(qube, volume, pool, *places, dedup_domain=dedup_domain(shared))

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
        if driver == "zfs":
            limit = self._options.data_limit
            return Pool(name, "zfs", devices(str(config["container"])), data_limit=limit)
        return (
            f"pool {name} has driver {driver}, which sparsebak cannot back up; lvm_thin,"
            " file-reflink and zfs are supported: move it there, or exclude the qube"
        )

    def _document(self, qube: str, volume: str) -> Iterator[Volume | Skipped]:
        """What was saved of settings, or of dom0's configuration, if anything."""
        path, wanted = document(self._config.state_dir, qube, volume), self._options.settings
        if qube == "dom0":
            unwanted = self.config_unwanted()
            if unwanted:
                yield Skipped(f"{qube}/{volume}", unwanted)
            wanted = unwanted is None
        if not wanted or not documents_are_taken_down() or not is_file(path):
            return
        name = f"{qube}/{volume}"
        # In the future: the clock was ahead, as that of a machine often is until somebody sets it.
        if abs(time.time() - path.stat().st_mtime) > SETTINGS_AGE:
            when = session_name(int(path.stat().st_mtime))
            text = f"it was last saved at {when}; run: sparsebak-agent settings collect"
            yield Skipped(name, text, failed=True)
            return
        pool = Pool(SETTINGS, SETTINGS, path.parent, data_limit=100)  # they are small
        yield Volume(qube, volume, pool, path.name, dedup_domain=dedup_domain(name))


def _is_without_document(one: Volume | Skipped) -> bool:
    """Whether it is settings whose file went as soon as it was known whose they are."""
    return (
        isinstance(one, Volume)
        and one.pool.driver == SETTINGS
        and not is_file(one.pool.path / one.vid)
    )


def document(state_dir: Path, qube: str, volume: str) -> Path:
    """Where a qube's settings, or dom0's configuration, are taken down for backups."""
    return state_dir / SETTINGS / f"{qube}.{volume}"


def documents_are_taken_down() -> bool:
    """Whether the package that does it is installed: sparsebak-dom0-settings."""
    try:
        return importlib.util.find_spec("dom0_agent.admin.settings.collecting") is not None
    except ModuleNotFoundError:
        return False


@contextmanager
def _understood(qube: str) -> Iterator[None]:
    """Turns an answer of qubesd that means nothing here (a pool's name, say) into a refusal."""
    try:
        yield
    except (KeyError, ValueError) as error:
        raise Refused(Code.INTERNAL, f"{qube}: {error}") from None


def _is_there(qube: str) -> bool:
    """Whether a qube exists now, past what is remembered; yes if that cannot be known."""
    try:
        with asking():
            return qube in connect().domains
    except Refused:
        return True


def _is_name(name: str) -> bool:
    try:
        return bool(parse_name(name, "qube"))
    except BadName:
        return False


def lasts(domain: Any, klass: str) -> bool:
    """Whether a qube outlives its being shut down: all but the disposables that go by
    themselves.
    """
    return klass != "DispVM" or not getattr(domain, "auto_cleanup", True)

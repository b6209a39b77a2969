"""What was restored of settings: kept in dom0 until its administrator applies it; a qube that is
gone is made anew.

``<state_dir>/restored/<qube>.<volume>`` holds the document, or for ``dom0/config`` the tar archive.
"""

import os
import time
from pathlib import Path
from typing import Any

from common.durable import make_directory, sync_directory
from common.image_writer import ImageWriter
from dom0_agent.admin.settings.document import LIMIT, QubeSettings, firewall_rules, from_bytes
from dom0_agent.admin.settings.plan import Step, plan, unexpired
from dom0_agent.catalog.tags import TAG
from dom0_agent.log import INFO, WARNING, log
from dom0_agent.notify import notify
from dom0_agent.qubesd import asking, connect
from wire.status import Code, Refused


def place(state_dir: Path, qube: str, volume: str) -> Path:
    """Where the restored settings of a qube wait."""
    return state_dir / "restored" / f"{qube}.{volume}"


class SettingsReplacement:
    """Restored settings on their way into their place in dom0; see Replacement."""

    ordered = False

    def __init__(
        self, state_dir: Path, qube: str, volume: str, size: int, older: bool = False
    ) -> None:
        self._older = older
        self._path, self._qube, self._is_document = (
            place(state_dir, qube, volume),
            qube,
            qube != "dom0",
        )
        if self._is_document and size > LIMIT:
            raise Refused(
                Code.BAD_REQUEST,
                f"{qube}/{volume}: settings of {size} bytes are too large to be any",
            )
        make_directory(self._path.parent)
        self._beside = self._path.with_name(self._path.name + ".new")
        self._file = ImageWriter(self._beside, size)

    def write(self, offset: int, parts: list[bytes]) -> None:
        """See Replacement."""
        self._file.write(offset, parts)

    def commit(self) -> None:
        """See Replacement. A qube that is not there is created, with the safe part of its
        settings.
        """
        self._file.sync()
        self._file.close()
        settings = from_bytes(self._beside.read_bytes()) if self._is_document else None
        os.replace(self._beside, self._path)
        sync_directory(self._path.parent)
        if settings is not None:
            create_if_gone(self._qube, settings, self._older)

    def discard(self) -> None:
        """See Replacement."""
        self._file.close()
        self._beside.unlink(missing_ok=True)

    @staticmethod
    def clean(state_dir: Path, qube: str, volume: str) -> None:
        """Remove what an interrupted restore left."""
        path = place(state_dir, qube, volume)
        path.with_name(path.name + ".new").unlink(missing_ok=True)


def create_if_gone(qube: str, settings: QubeSettings, older: bool = False) -> None:
    """Make a qube that does not exist from its settings. What could not be set is logged.

    It has no network until its firewall is the one of its settings, as qubesd tells it; and none at
    all when the settings are ``older`` than the newest known, which may give a network that was
    taken away since.
    """
    with asking():
        app = connect()
        if qube in app.domains:
            log(
                INFO,
                f"{qube}: its settings wait to be applied with: sparsebak-agent settings apply"
                f" {qube}",
            )
            return
        if settings.template is not None and settings.template not in app.domains:
            raise Refused(
                Code.SOURCE_FAILED,
                f"{qube}: its template {settings.template} is not there; install or restore it"
                " first",
            )
        if settings.klass not in ("AppVM", "TemplateVM", "StandaloneVM", "DispVM"):
            raise Refused(
                Code.SOURCE_FAILED, f"{qube}: a qube of class {settings.klass} cannot be made"
            )
        domain = _offline(app, qube, settings)
        domain.tags.add(TAG)
        log(INFO, f"{qube}: created, {settings.klass} with label {settings.label}")
        steps = [step for step in plan(app, domain, settings, fresh=True) if step.what != "netvm"]
        for step, error in apply(steps, frozenset()):
            if error is not None:
                log(WARNING, f"{qube}: {step.what} could not be set: {error}")
        if settings.netvm is not None:
            why_not = (
                "its settings are not the newest known"
                if older
                else _connect(app, domain, settings)
            )
            if why_not:
                text = (
                    f"{qube} stays without network: {why_not}; see: sparsebak-agent settings show"
                    f" {qube}"
                )
                log(WARNING, text)
                notify("Made without network", text, urgent=True)


def _offline(app: Any, qube: str, settings: QubeSettings) -> Any:
    """A new qube without network, or none at all: qubesd gives a new one the default network."""
    domain = app.add_new_vm(settings.klass, qube, settings.label, template=settings.template)
    try:
        domain.netvm = None
        if _netvm(app, qube):
            raise Refused(Code.SOURCE_FAILED, f"{qube}: qubesd did not take its network away")
    except BaseException:
        del app.domains[qube]  # a moment old, and empty
        raise
    return domain


def _connect(app: Any, domain: Any, settings: QubeSettings) -> str:
    """Give a new qube its network, if its firewall stands; else why it has none, in words."""
    qube, netvm = str(domain.name), settings.netvm
    if netvm not in app.domains:
        return f"there is no qube {netvm}"
    if not settings.firewall:
        return "no firewall is kept with its settings"
    try:
        if firewall_rules(domain) != unexpired(settings.firewall, time.time()):
            return "its firewall is not that of its settings"
        domain.netvm = netvm
        if _netvm(app, qube) == netvm:
            return ""
        error = "qubesd did not set it"
    except Exception as failed:  # whatever it was, the qube must not be left half connected
        error = str(failed) or type(failed).__name__
    try:
        domain.netvm = None
        return error if not _netvm(app, qube) else f"{error}; CHECK IT, it may have {netvm} anyway"
    except Exception as failed:
        return f"{error}; CHECK IT, it may have {netvm} anyway: {failed}"


def _netvm(app: Any, qube: str) -> str:
    """The network qube as qubesd has it now, past what qubesadmin remembers; empty for none."""
    raw: str = app.qubesd_call(qube, "admin.vm.property.Get", "netvm").decode("ascii")
    return raw.split(" ", 2)[2]


def apply(steps: list[Step], groups: frozenset[str]) -> list[tuple[Step, str | None]]:
    """Do the safe steps and those of the groups named, one by one; each with what went wrong, if
    anything.
    """
    done: list[tuple[Step, str | None]] = []
    for step in steps:
        if step.group and step.group not in groups:
            continue
        try:
            step.apply()
            done.append((step, None))
        except Exception as error:  # whatever qubesd thinks of it; the others go on
            done.append((step, str(error) or type(error).__name__))
    return done


def load(state_dir: Path, qube: str) -> tuple[Any, QubeSettings]:
    """qubesd and the settings that wait for a qube."""
    path = place(state_dir, qube, "settings")
    if not path.is_file():
        raise Refused(
            Code.NO_VOLUME,
            f"no settings of {qube} were restored; in the backup qube: sparsebak restore"
            f" {qube}/settings",
        )
    return connect(), from_bytes(path.read_bytes())

# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for qubesd: a Unix socket that speaks the Admin API's protocol, over a few qubes kept
in memory.

Requests are ``METHOD+ARG dom0 name DEST\\0PAYLOAD``, replies ``0\\0DATA`` or
``2\\0EXCEPTION\\0\\0FORMAT\\0``.
"""

import shutil
import socket
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.qubes.import_scripts import IMPORT, QUERY


class Refusal(Exception):
    """An exception of qubesadmin.exc, by name, with its text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class UnknownCall(Exception):
    """A call that qubesd of this release has not, which it does not answer."""


@dataclass
class Disk:
    """A volume: the pool's and its own id, and whether it is kept."""

    pool: str
    vid: str
    save_on_stop: bool = True
    size: int = 1 << 20
    revisions: int = 1


@dataclass
class Qube:
    """What qubesd knows of a qube. ``properties``: whether it is the default, type, value."""

    klass: str
    state: str = "Halted"
    properties: dict[str, tuple[bool, str, str]] = field(default_factory=dict)
    features: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    volumes: dict[str, Disk] = field(default_factory=dict)
    firewall: str = "action=accept\n"
    devices: dict[str, str] = field(default_factory=dict)
    notes: str = ""

    @property
    def uuid(self) -> str:
        return self.properties.get("uuid", (False, "str", str(uuid.UUID(int=0))))[2]


class Qubesd:
    """The server. ``calls`` lists the methods called; ``places`` is where the import script finds a
    volume's file.

    With ``sources``, a folder of core-admin's, the import script and qubesd-query are the real
    ones; ``programs`` has to be on PATH then. ``release`` (4.2 or 4.3) is whose calls it knows.
    """

    def __init__(self, folder: Path, sources: Path | None = None, release: str = "4.3") -> None:
        self.release = release
        self.qubes: dict[str, Qube] = {"dom0": Qube("AdminVM", "Running")}
        self.pools: dict[str, dict[str, str]] = {}
        self.calls: list[str] = []
        self.socket, self.places = folder / "qubesd.sock", folder / "places"
        self.services, self.programs = folder / "qubes-rpc", folder / "bin"
        for made in (self.places, self.services, self.programs):
            made.mkdir(parents=True)
        script = self.services / "admin.vm.volume.ImportWithSize"
        if sources is None:
            script.write_text(IMPORT.format(places=self.places))
        else:
            shutil.copy(sources / "qubes-rpc/admin.vm.volume.Import", script)
            query, tool = self.programs / "qubesd-query", sources / "qubes/tools/qubesd_query.py"
            query.write_text(QUERY.format(socket=self.socket, python=sys.executable, tool=tool))
            query.chmod(0o755)
        script.chmod(0o755)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(self.socket))
        self._server.listen(50)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        # A thread that still waits in accept keeps the socket, and the file system it is on.
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._server.close()

    def a_device(self, qube: str = "work") -> str:
        """A line of one that is given to a qube for good, as this release writes it."""
        if self.release == "4.2":
            return "dom0+00_14.0 persistent=yes\n"
        device = "0x8086:0xa0ed::p0c0330"
        port = "port_id='00_14.0' devclass='pci' backend_domain='dom0' mode='required'"
        return f"dom0+00_14.0:{device} device_id='{device}' {port} frontend_domain='{qube}'\n"

    def add(
        self,
        name: str,
        klass: str = "AppVM",
        pool: str = "",
        size: int = 1 << 20,
        **properties: tuple[bool, str, str],
    ) -> Qube:
        defaults = {
            "name": (False, "str", name),
            "uuid": (False, "str", str(uuid.uuid4())),
            "label": (False, "label", "red"),
            "netvm": (True, "vm", ""),
            "include_in_backups": (True, "bool", "True"),
            "memory": (True, "int", "400"),
            "kernelopts": (True, "str", ""),
            "backup_timestamp": (True, "int", ""),
        }
        if klass in ("AppVM", "DispVM"):
            defaults["template"] = (False, "vm", "fedora")
        if klass == "DispVM":  # one made by the way; those with a name have it off
            defaults["auto_cleanup"] = (False, "bool", "True")
        qube = self.qubes[name] = Qube(klass, properties={**defaults, **properties})
        group = "templates" if klass == "TemplateVM" else "appvms"
        for volume, kept in (
            ("root", klass != "AppVM"),
            ("private", klass != "DispVM"),
            ("volatile", False),
        ):
            qube.volumes[volume] = Disk(pool, f"{group}/{name}/{volume}", kept, size)
        return qube

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client:
                client.sendall(self._answer(client))

    def _answer(self, client: socket.socket) -> bytes:
        raw = b""
        while part := client.recv(65536):
            raw += part
        head, _, payload = raw.partition(b"\0")
        call, source, kind, dest = head.decode("ascii").split(" ")
        assert (source, kind) == ("dom0", "name") and len(raw) <= 65536
        method, plus, argument = call.partition("+")
        assert plus
        self.calls.append(method)
        try:
            return b"0\0" + self._call(method, argument, dest, payload).encode()
        except UnknownCall:
            return b""
        except Refusal as refusal:
            return f"2\0{refusal.name}\0\0{str(refusal).replace('%', '%%')}\0".encode()

    def _call(self, method: str, argument: str, dest: str, payload: bytes) -> str:
        if dest not in self.qubes:
            raise Refusal("QubesVMNotFoundError", f"No such domain: {dest!r}")
        if method.startswith("admin.vm.Create."):
            return self._create(method.rpartition(".")[2], argument, payload.decode())
        kind, _, verb = method.rpartition(".")
        if kind.startswith("admin.vm.device."):
            return self._device(
                self.qubes[dest], kind.rpartition(".")[2], verb, argument, payload.decode()
            )
        handler: Callable[..., str] | None = getattr(
            self, "_" + kind.replace("admin.", "").replace(".", "_"), None
        )
        if handler is None:
            raise UnknownCall(method)
        return handler(self.qubes[dest], verb, argument, payload.decode())

    def _create(self, klass: str, template: str, payload: str) -> str:
        given = dict(word.split("=", 1) for word in payload.split())
        if given["name"] in self.qubes:
            raise Refusal("QubesVMInUseError", "there is one already")
        pool = next(iter(self.pools))
        qube = self.add(
            given["name"],
            klass,
            pool,
            label=(False, "label", given["label"]),
            netvm=(True, "vm", "sys-net"),
            **({"auto_cleanup": (True, "bool", "False")} if klass == "DispVM" else {}),
        )
        qube.tags.add("created-by-dom0")
        if template:
            qube.properties["template"] = (False, "vm", template)
        return ""

    def _vm(self, qube: Qube, verb: str, argument: str, payload: str) -> str:
        if verb == "List":
            chosen = (
                self.qubes.items()
                if qube.klass == "AdminVM"
                else [(n, q) for n, q in self.qubes.items() if q is qube]
            )
            return "".join(
                f"{name} class={q.klass} state={q.state} uuid={q.uuid}\n" for name, q in chosen
            )
        if verb == "CurrentState":
            return f"mem=0 mem_static_max=0 cputime=0 power_state={qube.state}"
        if verb == "Remove":
            self.qubes = {name: q for name, q in self.qubes.items() if q is not qube}
            return ""
        if verb == "Start" and "backup-restore-in-progress" in qube.tags:
            raise Refusal("QubesVMError", "Restore of this domain in progress, cannot start")
        if verb in ("Start", "Shutdown"):
            qube.state = "Running" if verb == "Start" else "Halted"
            return ""
        raise Refusal("QubesDaemonAccessError", verb)

    def _vm_property(self, qube: Qube, verb: str, name: str, payload: str) -> str:
        if verb == "List":
            return "".join(f"{one}\n" for one in qube.properties)
        if verb == "GetAll":
            return "".join(
                f"{n} default={d} type={t} {v}\n" for n, (d, t, v) in qube.properties.items()
            )
        if name not in qube.properties:
            raise Refusal("QubesNoSuchPropertyError", f"no property {name}")
        default, kind, value = qube.properties[name]
        if verb == "Get":
            return f"default={default} type={kind} {value}"
        if kind == "vm" and payload and payload not in self.qubes:
            raise Refusal("QubesPropertyValueError", f"no domain {payload}")
        qube.properties[name] = (False, kind, payload)
        return ""

    def _vm_tag(self, qube: Qube, verb: str, tag: str, payload: str) -> str:
        if verb == "List":
            return "".join(f"{one}\n" for one in sorted(qube.tags))
        if verb == "Get":
            return "1" if tag in qube.tags else "0"
        qube.tags = qube.tags | {tag} if verb == "Set" else qube.tags - {tag}
        return ""

    def _vm_feature(self, qube: Qube, verb: str, name: str, payload: str) -> str:
        if verb == "List":
            return "".join(f"{one}\n" for one in qube.features)
        if verb == "Set":
            qube.features[name] = payload
            return ""
        if name not in qube.features:
            raise Refusal("QubesFeatureNotFoundError", name)
        return qube.features[name]

    def _vm_volume(self, qube: Qube, verb: str, name: str, payload: str) -> str:
        if verb == "List":
            return "".join(f"{one}\n" for one in qube.volumes)
        disk = qube.volumes[name]
        return (
            f"pool={disk.pool}\nvid={disk.vid}\nsize={disk.size}\nusage=0\nrw=True\nsource=\nsave_on_stop={disk.save_on_stop}\n"
            f"snap_on_start=False\nrevisions_to_keep={disk.revisions}\nis_outdated=False\nephemeral=False\n"
        )

    def _internal_vm_volume(self, qube: Qube, verb: str, volume: str, payload: str) -> str:
        """What the real import script asks: where to write, and to take what was written,
        or not.
        """
        name = next(name for name, one in self.qubes.items() if one is qube)
        path = Path((self.places / f"{name}+{volume}").read_text())
        into = path.with_name(path.name + ".import")
        if verb == "ImportBegin":
            if qube.state != "Halted":
                raise Refusal("QubesVMNotHaltedError", f"{name} is not halted")
            with open(into, "wb") as file:
                file.truncate(int(payload))
            return f"{payload} {into}"
        if payload != "ok":
            into.unlink()
            raise Refusal("QubesException", f"Data import failed: {payload.partition(chr(10))[2]}")
        if path.exists():
            path.rename(f"{path}.revision")
        into.rename(path)
        return ""

    def _vm_firewall(self, qube: Qube, verb: str, argument: str, payload: str) -> str:
        if verb == "Set":
            qube.firewall = payload
        return qube.firewall if verb == "Get" else ""

    def _vm_notes(self, qube: Qube, verb: str, argument: str, payload: str) -> str:
        if self.release == "4.2":
            raise UnknownCall("admin.vm.notes")
        if verb == "Set":
            qube.notes = payload
        return qube.notes if verb == "Get" else ""

    def _deviceclass(self, qube: Qube, verb: str, argument: str, payload: str) -> str:
        return "block\npci\n"

    def _device(self, qube: Qube, kind: str, verb: str, argument: str, payload: str) -> str:
        list_it, add = ("List", "Attach") if self.release == "4.2" else ("Assigned", "Assign")
        if verb not in (list_it, add):
            raise UnknownCall(verb)
        if verb == add:
            qube.devices[kind] = qube.devices.get(kind, "") + f"{argument} {payload}\n"
            return ""
        return qube.devices.get(kind, "")

    def _pool(self, qube: Qube, verb: str, name: str, payload: str) -> str:
        if verb == "List":
            return "".join(f"{one}\n" for one in self.pools)
        return "".join(f"{key}={value}\n" for key, value in self.pools[name].items())

    def _label(self, qube: Qube, verb: str, name: str, payload: str) -> str:
        labels = ("red", "orange", "yellow", "green", "gray", "blue", "purple", "black")
        return "".join(f"{one}\n" for one in labels) if verb == "List" else "0xcc0000"

    def _vmclass(self, qube: Qube, verb: str, name: str, payload: str) -> str:
        return "AppVM\nDispVM\nStandaloneVM\nTemplateVM\n"

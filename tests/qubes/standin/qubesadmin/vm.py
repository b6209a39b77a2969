# SPDX-License-Identifier: GPL-2.0-or-later
"""Qubes."""

import subprocess

from qubesadmin import config, storage


class QubesVM:
    def __init__(self, app, name, klass, state):
        self.__dict__.update(
            app=app,
            name=name,
            klass=klass,
            _state=state,
            tags=_Tags(app, name),
            features=_Features(app, name),
        )
        self.__dict__.update(firewall=_Firewall(app, name), _properties=None)

    def __str__(self):
        return self.name

    def qubesd_call(self, dest, method, arg=None, payload=None):
        return self.app.qubesd_call(dest or self.name, method, arg, payload)

    def _all(self):
        if self._properties is None:
            self.__dict__["_properties"] = {}
            for line in self.qubesd_call(None, "admin.vm.property.GetAll").decode().splitlines():
                name, default, kind, *value = line.split(" ", 3)
                text = value[0] if value else ""
                found = {
                    "bool": text == "True",
                    "int": int(text) if text.isdigit() else None,
                    "vm": text or None,
                }
                self._properties[name] = (
                    default == "default=True",
                    found.get(kind.removeprefix("type="), text),
                )
        return self._properties

    def property_list(self):
        return list(self._all())

    def property_is_default(self, name):
        return self._all()[name][0]

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._all():
            raise AttributeError(name)
        return self._all()[name][1]

    def __setattr__(self, name, value):
        text = "" if value is None else str(value)
        self.qubesd_call(None, "admin.vm.property.Set", name, text.encode())
        self.__dict__["_properties"] = None

    def _power(self):
        if self.app.cache_enabled:
            return self._state
        return (
            self.qubesd_call(None, "admin.vm.CurrentState").decode().rpartition("power_state=")[2]
        )

    def is_running(self):
        return self._power() not in ("Halted", "NA")

    def is_halted(self):
        return self._power() == "Halted"

    def start(self):
        self.qubesd_call(None, "admin.vm.Start")

    def shutdown(self):
        self.qubesd_call(None, "admin.vm.Shutdown")

    def kill(self):
        self.qubesd_call(None, "admin.vm.Kill")

    def run_service(self, service, user=None, wait=True, **streams):
        command = f"{user or 'DEFAULT'}:QUBESRPC {service} dom0"
        options = ["-d", self.name, *([] if wait else ["-e"])]
        return subprocess.Popen([config.QREXEC_CLIENT, *options, command], **streams)

    @property
    def volumes(self):
        names = self.qubesd_call(None, "admin.vm.volume.List").decode().split()
        return {name: storage.Volume(self.app, vm=self.name, vm_name=name) for name in names}

    def get_notes(self):
        return self.qubesd_call(None, "admin.vm.notes.Get").decode()

    def set_notes(self, notes):
        self.qubesd_call(None, "admin.vm.notes.Set", None, notes.encode())


class _Tags:
    def __init__(self, app, name):
        self._call = lambda method, *rest: app.qubesd_call(name, f"admin.vm.tag.{method}", *rest)

    def __iter__(self):
        return iter(self._call("List").decode().split())

    def __contains__(self, tag):
        return self._call("Get", tag) == b"1"

    def add(self, tag):
        self._call("Set", tag)

    def remove(self, tag):
        self._call("Remove", tag)

    discard = remove


class _Features:
    def __init__(self, app, name):
        self._call = lambda method, *rest: app.qubesd_call(
            name, f"admin.vm.feature.{method}", *rest
        )

    def __iter__(self):
        return iter(self._call("List").decode().split())

    def __contains__(self, name):
        return name in list(self)

    def __getitem__(self, name):
        return self._call("Get", name).decode()

    def get(self, name, default=None):
        return self[name] if name in list(self) else default

    def __setitem__(self, name, value):
        self._call("Set", name, str(value).encode())


class _Rule:
    def __init__(self, rule):
        self.rule = rule


class _Firewall:
    def __init__(self, app, name):
        self._app, self._name = app, name

    @property
    def rules(self):
        return [
            _Rule(line)
            for line in self._app.qubesd_call(self._name, "admin.vm.firewall.Get")
            .decode()
            .splitlines()
        ]

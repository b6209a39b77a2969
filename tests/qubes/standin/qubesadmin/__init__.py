# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for Qubes' own qubesadmin, with as much of its surface as the agent uses; it speaks to
a qubesd all the same.
"""

import socket

from qubesadmin import config, exc, storage, vm


class Qubes:
    cache_enabled = False

    def __init__(self):
        self.domains, self.pools = _Domains(self), _Pools(self)

    def qubesd_call(self, dest, method, arg=None, payload=None):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(config.QUBESD_SOCKET)
        client.sendall(f"{method}+{arg or ''} dom0 name {dest}\0".encode() + (payload or b""))
        client.shutdown(socket.SHUT_WR)
        answer = client.makefile("rb").read()
        client.close()
        if answer.startswith(b"0\0"):
            return answer[2:]
        if not answer:
            raise exc.QubesDaemonAccessError("no answer")
        _, kind, _, text, *_ = answer.split(b"\0")
        raise getattr(exc, kind.decode(), exc.QubesException)(text.decode())

    def __getattr__(self, name):
        answer = self.qubesd_call("dom0", "admin.property.Get", name).decode()
        return answer.split(" ", 2)[2] or None

    def add_new_vm(self, cls, name, label, template=None):
        self.qubesd_call(
            "dom0", f"admin.vm.Create.{cls}", template, f"name={name} label={label}".encode()
        )
        self.domains.clear_cache()
        return self.domains[name]


class _Pools:
    def __init__(self, app):
        self._app = app

    def __getitem__(self, name):
        return storage.Pool(self._app, name)


class _Domains:
    def __init__(self, app):
        self._app, self._list = app, None

    def clear_cache(self):
        self._list = None

    def _known(self):
        if self._list is None:
            lines = self._app.qubesd_call("dom0", "admin.vm.List").decode().splitlines()
            self._list = {
                line.split()[0]: dict(word.split("=") for word in line.split()[1:])
                for line in lines
            }
        return self._list

    def __contains__(self, name):
        return str(name) in self._known()

    def __getitem__(self, name):
        if name not in self:
            raise KeyError(name)
        known = self._known()[name]
        return vm.QubesVM(self._app, name, known["class"], known["state"])

    def __delitem__(self, name):
        self._app.qubesd_call(name, "admin.vm.Remove")
        self.clear_cache()

    def __iter__(self):
        return iter([self[name] for name in self._known()])

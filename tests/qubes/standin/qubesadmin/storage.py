# SPDX-License-Identifier: GPL-2.0-or-later
"""Volumes and pools."""

import os
import subprocess

from qubesadmin import exc


class Volume:
    def __init__(self, app, vm=None, vm_name=None):
        self._app, self._vm, self._name, self._info = app, vm, vm_name, None

    def __getattr__(self, key):
        if key.startswith("_"):
            raise AttributeError(key)
        if self._info is None:
            raw = self._app.qubesd_call(self._vm, "admin.vm.volume.Info", self._name).decode()
            self._info = dict(line.split("=", 1) for line in raw.splitlines())
        value = self._info[key]
        return value == "True" if key == "save_on_stop" else int(value) if key == "size" else value

    def import_data_with_size(self, stream, size):
        from qubesadmin import config

        script = f"{config.QREXEC_SERVICES_DIR}/admin.vm.volume.ImportWithSize"
        environment = {
            **os.environ,
            "QREXEC_REQUESTED_TARGET": self._vm,
            "QREXEC_REMOTE_DOMAIN": "dom0",
        }
        process = subprocess.Popen(
            [script, self._name], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            process.stdin.write(f"{size}\n".encode())
            while part := stream.read(1 << 16):
                process.stdin.write(part)
        except BrokenPipeError:
            pass
        answer = process.communicate()[0]
        if not answer.startswith(b"0\0"):
            raise exc.QubesException(answer.split(b"\0")[3].decode())


class Pool:
    def __init__(self, app, name):
        raw = app.qubesd_call("dom0", "admin.pool.Info", name).decode()
        self.name, self.config = name, dict(line.split("=", 1) for line in raw.splitlines())
        self.driver = self.config["driver"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""A Ceph of one monitor, one OSD and one S3 gateway, in one folder and on loopback, without systemd
and without a manager daemon: about 20 seconds, and 300 MiB of memory.

The order of steps is that of Ceph's manual deployment
(https://docs.ceph.com/en/pacific/install/manual-deployment/).
"""

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import cannot
from tests.remote.kit import Server, free_port, wait_for

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool")
ROOM = 4 << 30
"""Bytes of the OSD's file, which is sparse."""
KEY = "tests"
"""The gateway's user, and both of its keys: what tests.remote.kit has for every S3 server."""
_CONF = """\
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{old_mon}]
public_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {folder}/keyring
admin_socket = {folder}/$name.asok
pid_file = {folder}/$name.pid
log_file = {folder}/$name.log
run_dir = {folder}
crash_dir = {folder}
setuser =
setgroup =
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_data = {folder}/mon
osd_data = {folder}/osd
bluestore_block_size = {room}
osd_memory_target = 939524096
osd_op_num_shards = 2
mon_data_avail_crit = 1
mon_data_avail_warn = 2
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{gateway}
rgw_data = {folder}/rgw
rgw_thread_pool_size = 64
"""


class Cluster:
    """A running one. ``port`` is the gateway's."""

    def __init__(self, folder: Path, room: int = ROOM) -> None:
        for program in PROGRAMS:
            if not shutil.which(program):
                cannot(
                    f"{program} is not installed (Debian: ceph-mon ceph-osd radosgw ceph-common)"
                )
        self.folder, self.port = folder, free_port()
        self._conf = folder / "ceph.conf"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        fsid = str(uuid.uuid4())
        self._conf.write_text(
            _CONF.format(
                fsid=fsid, folder=folder, mon=free_port(), old_mon=free_port(),
                gateway=self.port, room=room,
            )
        )  # fmt: skip
        try:
            self._monitor(fsid)
            self._osd()
            self.start_gateway()
            self._admin(
                *("radosgw-admin", "user", "create", "--uid", KEY, "--display-name", KEY),
                *("--access-key", KEY, "--secret-key", KEY),
            )
        except BaseException:
            self.close()
            raise

    def _admin(self, *command: str | Path) -> str:
        """What a command says on its standard output."""
        done = subprocess.run(
            [command[0], "--conf", self._conf, *command[1:]], capture_output=True, timeout=120
        )
        assert done.returncode == 0, f"{command}: {done.stderr.decode(errors='replace')[-2000:]}"
        return done.stdout.decode()

    def _start(self, name: str, *command: str | Path) -> "subprocess.Popen[bytes]":
        with open(self.folder / f"{name}.out", "ab") as out:
            process = subprocess.Popen(
                [command[0], "--conf", self._conf, "--foreground", *command[1:]],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
            )
        self._running[name] = process
        return process

    def _monitor(self, fsid: str) -> None:
        keyring, conf = self.folder / "keyring", self._conf
        for name, caps in (
            ("mon.", ["mon", "allow *"]),
            ("client.admin", ["mon", "allow *", "osd", "allow *", "mgr", "allow *"]),
            ("client.rgw", ["mon", "allow rw", "osd", "allow rwx"]),
        ):
            options = [
                word for at in range(0, len(caps), 2) for word in ("--cap", *caps[at : at + 2])
            ]
            create = [] if keyring.exists() else ["--create-keyring"]
            _run("ceph-authtool", *create, keyring, "--gen-key", "-n", name, *options)
        address = next(
            line for line in conf.read_text().splitlines() if line.startswith("mon_host")
        )
        _run(
            *("monmaptool", "--create", "--fsid", fsid, "--enable-all-features", "--addv", "a"),
            *(address.partition("= ")[2], self.folder / "monmap"),
        )
        _run(
            *("ceph-mon", "--conf", conf, "--mkfs", "-i", "a", "--monmap", self.folder / "monmap"),
            *("--keyring", keyring),
        )
        self._start("mon", "ceph-mon", "-i", "a")
        self._until(lambda: "quorum" in self._admin("ceph", "quorum_status"))
        self._admin("ceph", "auth", "import", "-i", keyring)

    def _osd(self) -> None:
        one, keyring = str(uuid.uuid4()), self.folder / "keyring"
        (self.folder / "osd").mkdir()
        number = self._admin("ceph", "osd", "new", one).strip()
        assert number == "0"
        _run(
            *("ceph-authtool", keyring, "--gen-key", "-n", "osd.0", "--cap", "osd", "allow *"),
            *("--cap", "mon", "allow profile osd"),
        )
        self._admin("ceph", "auth", "import", "-i", keyring)
        _run("ceph-osd", "--conf", self._conf, "-i", "0", "--mkfs", "--osd-uuid", one)
        self.start_osd()

    def start_osd(self) -> None:
        """Start the OSD, and wait until it is up."""
        self._start("osd", "ceph-osd", "-i", "0")
        self._until(
            lambda: json.loads(self._admin("ceph", "osd", "stat", "-f", "json"))["num_up_osds"]
        )

    def start_gateway(self) -> None:
        """Start the gateway, and wait until it listens."""
        wait_for(self.port, self._start("rgw", "radosgw", "-n", "client.rgw"), 90)

    def kill(self, name: str) -> None:
        """Kill ``mon``, ``osd`` or ``rgw``, as a crash or a power cut would."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    @staticmethod
    def _until(done: Callable[[], object], patience: float = 60) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                if done():
                    return
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            assert time.monotonic() < deadline, "the cluster did not come up"
            time.sleep(0.2)

    def add_user(self, name: str) -> None:
        """Another user, whose keys are its name, too, and who may do nothing yet."""
        self._admin(
            *("radosgw-admin", "user", "create", "--uid", name, "--display-name", name),
            *("--access-key", name, "--secret-key", name),
        )

    def client(self, user: str = KEY) -> Any:
        """boto3's client, for what sparsebak does not do: making buckets."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=user,
            aws_secret_access_key=user,
            region_name="us-east-1",
        )

    def environment(self) -> dict[str, str]:
        """What leads to the gateway."""
        return Server("s3", self.port, self.folder).environment()

    def close(self) -> None:
        for process in reversed(self._running.values()):
            process.kill()
            process.wait()
        self._running.clear()


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, timeout=120, env={**os.environ})
    assert done.returncode == 0, f"{command}: {done.stderr.decode(errors='replace')[-2000:]}"


@contextmanager
def cluster(folder: Path, room: int = ROOM) -> Iterator[Cluster]:
    """A cluster in a folder, gone at the end."""
    made = Cluster(folder, room)
    try:
        yield made
    finally:
        made.close()

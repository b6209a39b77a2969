# SPDX-License-Identifier: GPL-2.0-or-later
"""An SFTP server on loopback that is not OpenSSH's: ``sftp_server.py ROOT HOSTKEY
[WORD=VALUE...]``; prints its port.

posixrename=yes   posix-rename@openssh.com is offered, and done; otherwise neither, and rename never
replaces quota=BYTES       writes beyond so many bytes in all answer SSH_FX_FAILURE, as OpenSSH does
for a full disk without=WORDS     attributes lack these, separated by commas: permissions, size,
times connections=N     more connections than that are closed at once hostile=1         listings
also have names that lead elsewhere, or that no file can have broken=NAME       renaming to a path
that ends so fails once after the old file was removed It keeps SFTP version 3's rules otherwise; it
never follows what openssh.com has added.
"""

import os
import socket
import sys
import threading
from pathlib import Path

import paramiko
from paramiko import SFTPAttributes, SFTPHandle, SFTPServer, SFTPServerInterface

root, hostkey = sys.argv[1:3]
options = dict(word.split("=", 1) for word in sys.argv[3:])
without = options.get("without", "").split(",")
HOSTILE = ("../../escaped.session", "..", "/etc/passwd", "a\nb.session", "x" * 300, "\x1b[2J")


def used() -> int:
    return sum(path.stat().st_size for path in Path(root).rglob("*") if path.is_file())


def attributes(found: os.stat_result, name: str | None = None) -> SFTPAttributes:
    made = SFTPAttributes.from_stat(found, name)
    for word, flag in (
        ("permissions", made.FLAG_PERMISSIONS),
        ("size", made.FLAG_SIZE),
        ("times", made.FLAG_AMTIME),
    ):
        if word in without and not (word == "size" and name is None):
            made._flags &= ~flag
    if "permissions" in without:
        made.st_mode = None
    return made


class Handle(SFTPHandle):
    readfile = writefile = None

    def stat(self):
        return attributes(os.fstat((self.writefile or self.readfile).fileno()))

    def write(self, offset, data):
        if used() + len(data) > int(options.get("quota", 1 << 60)):
            return paramiko.SFTP_FAILURE
        return super().write(offset, data)


class Files(SFTPServerInterface):
    def _path(self, path):
        return root + "/" + self.canonicalize(path).lstrip("/")

    def _try(self, action):
        try:
            return action() or paramiko.SFTP_OK
        except OSError as error:
            return SFTPServer.convert_errno(error.errno)

    def list_folder(self, path):
        def look():
            place = self._path(path)
            found = [attributes(os.stat(f"{place}/{n}"), n) for n in os.listdir(place)]
            if "hostile" in options and os.listdir(place):
                there = os.stat(hostkey)
                found += [attributes(there, name) for name in HOSTILE]
            return found

        return self._try(look)

    def stat(self, path):
        return self._try(lambda: attributes(os.stat(self._path(path))))

    lstat = stat

    def open(self, path, flags, _):
        def begin():
            fd = os.open(self._path(path), flags, 0o666)
            handle = Handle(flags)
            if flags & os.O_WRONLY:
                handle.writefile = os.fdopen(fd, "wb")
            else:
                handle.readfile = os.fdopen(fd, "rb")
            return handle

        return self._try(begin)

    def remove(self, path):
        return self._try(lambda: os.remove(self._path(path)))

    def mkdir(self, path, _):
        if used() >= int(options.get("quota", 1 << 60)):
            return paramiko.SFTP_FAILURE
        return self._try(lambda: os.mkdir(self._path(path)))

    def rename(self, old, new):
        if "broken" in options and new.endswith(options["broken"]) and new not in failed:
            failed.add(new)
            return paramiko.SFTP_FAILURE
        if os.path.exists(self._path(new)):
            return paramiko.SFTP_FAILURE
        return self._try(lambda: os.rename(self._path(old), self._path(new)))

    def posix_rename(self, old, new):
        if options.get("posixrename") != "yes":
            return paramiko.SFTP_OP_UNSUPPORTED
        return self._try(lambda: os.replace(self._path(old), self._path(new)))


class Login(paramiko.ServerInterface):
    def check_channel_request(self, kind, number):
        return paramiko.OPEN_SUCCEEDED

    def check_auth_publickey(self, user, key):
        return paramiko.AUTH_SUCCESSFUL

    def get_allowed_auths(self, user):
        return "publickey"


failed: set[str] = set()
key = paramiko.Ed25519Key.from_private_key_file(hostkey)
listener = socket.create_server(("127.0.0.1", 0), backlog=50)
print(listener.getsockname()[1], flush=True)
live: list[paramiko.Transport] = []


def serve(one: socket.socket) -> None:
    transport = paramiko.Transport(one)
    transport.add_server_key(key)
    transport.set_subsystem_handler("sftp", SFTPServer, Files)
    live.append(transport)
    transport.start_server(server=Login())


while True:
    connection, _ = listener.accept()
    live = [one for one in live if one.is_active()]
    if len(live) >= int(options.get("connections", 1000)):
        connection.close()
        continue
    threading.Thread(target=serve, args=(connection,), daemon=True).start()

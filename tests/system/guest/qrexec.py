#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for qrexec between two machines without Xen, under the names that its programs have.

In a qube ``qrexec-agent`` runs what dom0 asks for and ``qrexec-client-vm TARGET SERVICE`` calls; in
dom0 ``qrexec-daemon QUBE`` answers calls and ``qrexec-client -d QUBE USER:COMMAND`` asks a qube.
``qubes-vmexec ARGUMENT`` is what the service qubes.VMExec starts. A folder that both machines see,
``/qrexec/QUBE`` in dom0 and ``/qrexec`` in the qube, has a socket for each direction; frames on
them have a type and a length, as qrexec's own have.

It keeps these of qrexec's rules: who calls is told by the socket, never by the caller; characters
outside the allowed ones become ``_``; a target that does not exist is @default; the rules of
``/etc/qubes/policy.d`` decide, and ``ask`` is answered by the file ``/qrexec/answer``; a service is
looked for in three folders, with its argument before without; it runs as the login user, with a
socket for stdin and stdout; one that is a socket gets the head of a connection in place of the
environment; 126 is a refusal, 127 a service that is not there, 125 one that cannot be run, and more
than 128 a signal. All calls go to dom0, as those of every rule of ours do.
"""

import contextlib
import os
import pwd
import re
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = Path("/qrexec")
RULES = Path("/etc/qubes/policy.d")
QUBESD = "/var/run/qubesd.sock"
PLACES = ("/run/qubes-rpc", "/usr/local/etc/qubes-rpc", "/etc/qubes-rpc")
LOGIN = "user"
STDIN, STDOUT, EXIT = 0x190, 0x191, 0x193
FRAME = struct.Struct("<II")
PART = 1 << 16
LONGEST_NAME = 255
REFUSED, MISSING, NOT_EXECUTABLE, KILLED = 126, 127, 125, 128


def put(peer: socket.socket, kind: int, data: bytes) -> None:
    peer.sendall(FRAME.pack(kind, len(data)) + data)


def frames(peer: socket.socket) -> Iterator[tuple[int, bytes]]:
    with peer.makefile("rb") as stream:
        while len(head := stream.read(FRAME.size)) == FRAME.size:
            kind, size = FRAME.unpack(head)
            yield kind, stream.read(size)


def ask(path: Path, head: str) -> int:
    """Call whoever listens at ``path``: our stdin to it, its stdout to ours; its exit code."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(path))
    peer.sendall(head.encode() + b"\0")

    def send() -> None:
        with contextlib.suppress(OSError):
            while part := os.read(0, PART):
                put(peer, STDIN, part)
            put(peer, STDIN, b"")

    threading.Thread(target=send, daemon=True).start()
    for kind, data in frames(peer):
        if kind == EXIT:
            return int.from_bytes(data, "little")
        if data:
            while data:
                data = data[os.write(1, data) :]
        else:
            os.close(1)
    return KILLED + 9


def serve(path: Path, answer: Callable[[socket.socket, str], int]) -> None:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen(50)

    def one(peer: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\0") and (byte := peer.recv(1)):
            head += byte
        with contextlib.suppress(OSError), peer:  # a caller that is gone needs no answer
            code = answer(peer, head.rstrip(b"\0").decode())
            put(peer, EXIT, code.to_bytes(4, "little"))

    while True:
        threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()


def find(service: str, argument: str) -> Path | None:
    for name in (f"{service}+{argument}", service):
        if len(name) > LONGEST_NAME:  # no file has it, which is no error
            continue
        for place in PLACES:
            path = Path(place, name)
            if path.exists():
                return path
    return None


def run(
    peer: socket.socket, call: str, source: str, user: str, words: dict[str, str], head: str
) -> int:
    """The service of this machine that is called, its streams to and from ``peer``."""
    service, _, argument = call.partition("+")
    path = find(service, argument)
    if path is None:
        return MISSING
    who = pwd.getpwnam(user)
    if stat.S_ISSOCK(path.stat().st_mode):
        # what connects is a process of the user, as the mode of the socket wants it
        ours, theirs = socket.socketpair()
        command = [sys.executable, str(Path(__file__).resolve()), "connect", str(path), head]
    else:
        if not os.access(path, os.X_OK):
            return NOT_EXECUTABLE
        ours, theirs = socket.socketpair()
        command = [str(path), *([argument] if argument else [])]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
    environment |= {"HOME": who.pw_dir, "USER": user, "QREXEC_REMOTE_DOMAIN": source}
    environment |= {"QREXEC_SERVICE_FULL_NAME": call, "QREXEC_SERVICE_ARGUMENT": argument, **words}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, env=environment, cwd=who.pw_dir, user=user,
        group=who.pw_gid, extra_groups=os.getgrouplist(user, who.pw_gid),
    )  # fmt: skip
    theirs.close()

    def send() -> None:
        with contextlib.suppress(OSError):
            for kind, data in frames(peer):
                if kind == STDIN and not data:
                    ours.shutdown(socket.SHUT_WR)
                elif kind == STDIN:
                    ours.sendall(data)
            ours.shutdown(socket.SHUT_RDWR)  # the caller is gone

    threading.Thread(target=send, daemon=True).start()
    with contextlib.suppress(ConnectionResetError):
        while part := ours.recv(PART):
            put(peer, STDOUT, part)
    put(peer, STDOUT, b"")
    code = process.wait()
    return code if code >= 0 else KILLED - code


def connect(path: str, head: str) -> int:
    """Between a service's socket and our stdin and stdout, which are one socket."""
    peer, ours = socket.socket(socket.AF_UNIX), socket.socket(fileno=0)
    peer.connect(path)
    peer.sendall(head.encode() + b"\0")

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(PART):
                target.sendall(part)
            target.shutdown(socket.SHUT_WR)

    threading.Thread(target=pump, args=(ours, peer), daemon=True).start()
    pump(peer, ours)
    return 0


def daemon(source: str) -> None:
    """dom0's: answers the calls of one qube."""
    import policy

    def answer(peer: socket.socket, asked: str) -> int:
        target, _, call = asked.partition(" ")
        call = re.sub(r"[^A-Za-z0-9_.+-]", "_", call)
        service, _, argument = call.partition("+")
        tags = policy.tags_of(QUBESD)
        target = policy.intended(target, tags)
        rules = [line for file in sorted(RULES.glob("*.policy")) for line in policy.read(file)]
        action = policy.decide(rules, tags, service, argument, source, target)
        with open(FOLDER / "log", "a") as log:
            log.write(f"{action} {target} {call}\n")
        if action == "ask" and (FOLDER / "answer").read_text() != "yes":
            action = "deny"
        if action == "deny":
            return REFUSED
        kind, name = ("keyword", target[1:]) if target.startswith("@") else ("name", target)
        suffix = "_KEYWORD" if kind == "keyword" else ""
        words = {"QREXEC_REQUESTED_TARGET_TYPE": kind, f"QREXEC_REQUESTED_TARGET{suffix}": name}
        return run(peer, call, source, LOGIN, words, f"{call} {source} {kind} {name}")

    serve(FOLDER / source / "daemon", answer)


def agent() -> None:
    """A qube's: runs what dom0 asks for."""

    def answer(peer: socket.socket, asked: str) -> int:
        user, _, command = asked.partition(":")
        word, call, source = command.split(" ")
        assert word == "QUBESRPC"
        return run(peer, call, source, user, {}, f"{call} {source}")

    serve(FOLDER / "agent", answer)


def from_vmexec(part: str) -> str:
    """As core-agent-linux has it (``qubesagent/vmexec.py``): ``--`` is a dash, ``-HH`` any byte, no
    other dash is allowed.
    """
    assert re.fullmatch(r"(?:[a-zA-Z0-9._]|--|-[A-F0-9]{2})*", part)
    return re.sub(
        "--|-([A-F0-9]{2})", lambda found: chr(int(found[1], 16)) if found[1] else "-", part
    )


def main(name: str, words: list[str]) -> int:
    if name == "qrexec-daemon":
        daemon(*words)
    elif name == "qrexec-agent":
        agent()
    elif name == "qrexec-client-vm":
        return ask(FOLDER / "daemon", " ".join(words))
    elif name == "qrexec-client":
        option, qube, command = words
        assert option == "-d"
        return ask(FOLDER / qube / "agent", command)
    elif name == "qubes-vmexec":
        command = [from_vmexec(part) for part in words[0].split("+")]
        os.execvp(command[0], command)  # noqa: S606
    elif words[0] == "connect":
        return connect(*words[1:])
    return MISSING


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main(Path(sys.argv[0]).name, sys.argv[1:]))

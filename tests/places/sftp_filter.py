# SPDX-License-Identifier: GPL-2.0-or-later
"""OpenSSH's SFTP server without some of its extensions: ``sftp_filter.py NAME[,NAME...]``, or ``*``
for all of them. It is between the client and the real one, announces what is left, and answers
"unsupported" to the others as the protocol has it.
"""

import fnmatch
import os
import struct
import subprocess
import sys
import threading
from typing import IO

SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")
VERSION, STATUS, EXTENDED, UNSUPPORTED = 2, 101, 200, 8
lacking = sys.argv[1].split(",")
answering = threading.Lock()


def packet(stream: IO[bytes]) -> bytes:
    head = stream.read(4)
    return stream.read(struct.unpack(">I", head)[0]) if len(head) == 4 else b""


def send(stream: IO[bytes], body: bytes) -> None:
    stream.write(struct.pack(">I", len(body)) + body)
    stream.flush()


def text(raw: bytes, at: int) -> bytes:
    return raw[at + 4 : at + 4 + struct.unpack_from(">I", raw, at)[0]]


def lacks(name: bytes) -> bool:
    return any(fnmatch.fnmatchcase(name.decode(), one) for one in lacking)


def answers(server: IO[bytes], client: IO[bytes]) -> None:
    while body := packet(server):
        if body[0] == VERSION:
            left, at = body[:5], 5
            while at < len(body):
                name = text(body, at)
                after = at + 4 + len(name)
                after += 4 + len(text(body, after))
                left += b"" if lacks(name) else body[at:after]
                at = after
            body = left
        with answering:
            send(client, body)
    os._exit(0)


def main() -> None:
    program = next(path for path in SERVERS if os.path.exists(path))
    real = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert real.stdin is not None and real.stdout is not None
    client = os.fdopen(1, "wb", buffering=0)
    threading.Thread(target=answers, args=(real.stdout, client), daemon=True).start()
    source = os.fdopen(0, "rb")
    while body := packet(source):
        if body[0] == EXTENDED and lacks(text(body, 5)):
            refused = b"no such extension"
            code = struct.pack(">I", UNSUPPORTED)
            said = struct.pack(">I", len(refused)) + refused + struct.pack(">I", 0)
            with answering:
                send(client, bytes([STATUS]) + body[1:5] + code + said)
        else:
            send(real.stdin, body)
    real.kill()


main()

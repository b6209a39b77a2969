# SPDX-License-Identifier: GPL-2.0-or-later
"""Which user is at the other end of a TCP connection on this machine, as the kernel tells."""

from pathlib import Path

TABLE = Path("/proc/net/tcp")
Address = tuple[str, int]


def owner(peer: Address, here: Address) -> int | None:
    """The user id of the socket ``peer`` that is connected to ``here``, both IPv4; None where the
    kernel lists none. Raises OSError where there is no table to read.
    """
    wanted = (_written(peer), _written(here))
    for line in TABLE.read_text("ascii").splitlines()[1:]:
        fields = line.split()
        if (fields[1], fields[2]) == wanted:
            return int(fields[7])
    return None


def _written(address: Address) -> str:
    """An address as the table has it: the four bytes as one number of this machine's byte order."""
    import socket
    import sys

    number = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{number:08X}:{address[1]:04X}"

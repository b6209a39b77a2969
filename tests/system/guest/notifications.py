#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A desktop that writes down what it is told, one line a notification: the service
org.freedesktop.Notifications of a user's bus, which starts it for the first one.
"""

import sys
from pathlib import Path

from jeepney import DBus, HeaderFields, MessageType, new_method_return
from jeepney.io.blocking import open_dbus_connection

NAME = "org.freedesktop.Notifications"


def main() -> int:
    bus = open_dbus_connection("SESSION")
    bus.send_and_get_reply(DBus().RequestName(NAME))
    while True:
        message = bus.receive()
        if message.header.message_type is not MessageType.method_call:
            continue
        member = message.header.fields[HeaderFields.member]
        if member == "Notify":
            _, _, _, title, text, *_ = message.body
            with open(Path.home() / "notifications", "a") as file:
                print(f"{title}: {text}", file=file)
            answer = new_method_return(message, "u", (1,))
        elif member == "GetCapabilities":
            answer = new_method_return(message, "as", (["body"],))
        else:
            answer = new_method_return(message, "ssss", ("stand-in", "sparsebak", "1", "1.2"))
        bus.send(answer)


if __name__ == "__main__":
    sys.exit(main())

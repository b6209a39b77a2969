# SPDX-License-Identifier: GPL-2.0-or-later
"""Qubes' policy rules, as far as the shipped file uses them: the first line that matches decides,
and no match denies.

Semantics: core-qrexec, ``doc/multifile-policy.rst``.
"""

import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Line:
    service: str
    argument: str
    source: str
    target: str
    action: str
    options: dict[str, str]


def read(path: Path) -> list[Line]:
    lines = []
    for text in path.read_text().splitlines():
        if text and not text.startswith("#"):
            service, argument, source, target, action, *options = text.split()
            lines.append(
                Line(
                    service,
                    argument,
                    source,
                    target,
                    action,
                    dict(option.split("=", 1) for option in options),
                )
            )
    return lines


def tags_of(qubesd: str) -> dict[str, set[str]]:
    """Of each qube, asked of the qubesd whose socket is ``qubesd``."""

    def ask(method: str, dest: str) -> list[str]:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(qubesd)
        client.sendall(f"{method}+ dom0 name {dest}\0".encode())
        client.shutdown(socket.SHUT_WR)
        answer = client.makefile("rb").read()
        client.close()
        return answer[2:].decode().splitlines()

    return {
        name: set(ask("admin.vm.tag.List", name))
        for name in (line.split()[0] for line in ask("admin.vm.List", "dom0"))
    }


def intended(target: str, tags: dict[str, set[str]]) -> str:
    """The target that a service is told of: @default in place of one that does not exist."""
    return target if target.startswith("@") or target in tags else "@default"


def decide(
    lines: list[Line],
    tags: dict[str, set[str]],
    service: str,
    argument: str,
    source: str,
    target: str,
) -> str:
    """``allow``, ``ask`` or ``deny``, also of a target that is dom0 by its name."""
    target = "@adminvm" if target == "dom0" else intended(target, tags)
    for line in lines:
        if (line.service, line.argument) not in ((service, "*"), (service, f"+{argument}")):
            continue
        if _matches(line.source, source, tags) and _matches(line.target, target, tags):
            return line.action
    return "deny"


def _matches(pattern: str, name: str, tags: dict[str, set[str]]) -> bool:
    if pattern == "@anyvm":
        return name in tags or name == "@default"
    if pattern.startswith("@tag:"):
        return pattern.removeprefix("@tag:") in tags.get(name, set())
    return pattern == name

# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom a call is about, as qrexec says it: in the environment and on a connection alike."""

import pytest

from dom0_agent.rpc.heads import ABSENT, from_environment, parse_head, understand
from wire.status import Code, Refused


def environment(kind: str, target: str) -> dict[str, str]:
    """As qrexec makes it (core-qrexec, ``libqrexec/exec.c``)."""
    suffix = "" if kind == "name" else "_KEYWORD"
    return {
        "QREXEC_REMOTE_DOMAIN": "backup-vm",
        "QREXEC_REQUESTED_TARGET_TYPE": kind,
        f"QREXEC_REQUESTED_TARGET{suffix}": target,
    }


@pytest.mark.parametrize(
    ("kind", "target", "meant"),
    [
        ("keyword", "adminvm", None),
        ("name", "dom0", None),  # as Qubes OS 4.3 says of a call to dom0 by its name
        ("name", "work", "work"),
        ("keyword", "default", ABSENT),
    ],
)
def test_who_is_meant(kind: str, target: str, meant: str | None) -> None:
    head = parse_head(f"sparsebak.List+ backup-vm {kind} {target}".encode())
    words = from_environment("List", environment(kind, target))
    assert head == words
    assert understand(words).target == meant


@pytest.mark.parametrize(
    ("kind", "target"),
    [("keyword", "dispvm"), ("keyword", "dispvm:work"), ("keyword", ""), ("name", ""), ("", "")],
)
def test_nobody_else_is_dom0(kind: str, target: str) -> None:
    with pytest.raises(Refused) as refused:
        understand(from_environment("List", environment(kind, target)))
    assert refused.value.code == Code.BAD_REQUEST
    head = parse_head(f"sparsebak.List+ backup-vm {kind} {target}".encode())
    if head is not None:
        with pytest.raises(Refused):
            understand(head)


@pytest.mark.parametrize("service", ["Snapshot", "Restore"])
def test_an_argument_too_long_is_the_callers_mistake(service: str) -> None:
    words = parse_head(f"sparsebak.{service}+{'x' * 3900} backup-vm name work".encode())
    assert words is not None
    with pytest.raises(Refused) as refused:
        understand(words)
    assert refused.value.code == Code.BAD_REQUEST
    assert len(str(refused.value)) < 500

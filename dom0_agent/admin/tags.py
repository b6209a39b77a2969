# SPDX-License-Identifier: GPL-2.0-or-later
"""The tags that the policy goes by: one for the backup VM, one for each qube that it may back up.

``sparsebak-agent setup`` puts them right once; a qube that was made since then is picked up here.
"""

from collections.abc import Iterable
from typing import Any

from common.existing import is_dir
from dom0_agent.admin.catalog import ask
from dom0_agent.admin.qubes_options import qubes_options
from dom0_agent.config import Config
from dom0_agent.log import INFO, WARNING, log
from dom0_agent.qubesd import asking, connect
from wire.status import Refused

TAG = "sparsebak"
"""Tag of the qubes that the backup VM may back up."""
VM_TAG = "sparsebak-vm"
"""Tag of the backup VM."""
READER_TAG = "sparsebak-reader"
"""Tag of a disposable that may read sealed chunks from the backup VM."""


def untagged(config: Config) -> tuple[str, list[Any]]:
    """The backup VM, and the qubes of the catalog that were never backed up and that the policy
    does not allow it.

    Nothing before setup has named a backup VM, or without Qubes. Only of qubes without a session is
    qubesd asked: those that have one were allowed, and whoever took the tag from one of them meant
    it.
    """
    if config.catalog != "qubes":
        return "", []
    with asking():
        app = connect()
        vms = [str(domain.name) for domain in tagged(app.domains, VM_TAG)]
        if len(vms) != 1:
            return "", []
        qubes = {v.qube: v.identity for v in ask(config, vms[0]).volumes() if v.qube != "dom0"}
        new = [
            app.domains[qube]
            for qube in sorted(qubes)
            if not is_dir(config.state_dir / "volumes" / qubes[qube]) and qube in app.domains
        ]
    return vms[0], tagged(new, TAG, False)


def tagged(domains: Iterable[Any], tag: str, wanted: bool = True) -> list[Any]:
    """The qubes that have a tag, or have it not; one that qubesd cannot tell of is left out."""
    found = []
    for domain in domains:
        try:
            with asking():
                if (tag in domain.tags) == wanted:
                    found.append(domain)
        except Refused as refused:
            log(WARNING, f"{domain.name}: its tags are not known: {refused}")
    return found


def tag_new(config: Config) -> list[str]:
    """Let the backup VM have the qubes that were made since setup, unless the configuration says
    not to; their names.
    """
    if not qubes_options(config).tag_new:
        return []
    vm, new = untagged(config)
    done = []
    for domain in new:
        try:
            with asking():
                domain.tags.add(TAG)
        except Refused as refused:  # the next time
            log(WARNING, f"{domain.name} is new, and cannot be tagged: {refused}")
            continue
        done.append(str(domain.name))
        log(INFO, f"{domain.name} is new, and to be backed up: {vm} may do that now")
    return done

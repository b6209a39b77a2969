"""The tags that the policy goes by: one for the backup VM, one for each qube that it may back up.

``sparsebak-agent setup`` puts them right once; a qube that was made since then is picked up here.
"""

from typing import Any

from dom0_agent.catalog import open_catalog
from dom0_agent.config import Config
from dom0_agent.log import INFO, log
from dom0_agent.qubesd import asking, connect

TAG = "sparsebak"
"""Tag of the qubes that the backup VM may back up."""
VM_TAG = "sparsebak-vm"
"""Tag of the backup VM."""


def untagged(config: Config) -> tuple[str, list[Any]]:
    """The backup VM, and the qubes of the catalog that were never backed up and that the policy does not allow it.

    Nothing before setup has named a backup VM, or without Qubes. Only of qubes without a session is qubesd asked: those
    that have one were allowed, and whoever took the tag from one of them meant it.
    """
    if config.catalog != "qubes":
        return "", []
    with asking():
        app = connect()
        vms = [str(domain.name) for domain in app.domains if VM_TAG in domain.tags]
        if len(vms) != 1:
            return "", []
        qubes = {volume.qube for volume in open_catalog(config, vms[0]).volumes()} - {"dom0"}
        new = sorted(q for q in qubes if not (config.state_dir / "volumes" / q).is_dir())
        return vms[0], [
            app.domains[qube]
            for qube in new
            if qube in app.domains and TAG not in app.domains[qube].tags
        ]


def tag_new(config: Config) -> list[str]:
    """Let the backup VM have the qubes that were made since setup, unless the configuration says not to; their names."""
    if not config.qubes.tag_new:
        return []
    vm, new = untagged(config)
    with asking():
        for domain in new:
            domain.tags.add(TAG)
            log(INFO, f"{domain.name} is new, and in the catalog: {vm} may back it up now")
    return [str(domain.name) for domain in new]

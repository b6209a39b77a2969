# SPDX-License-Identifier: GPL-2.0-or-later
"""Each file of dom0's state made wrong in every way: no call hangs or shows a traceback, and no
session is wrong for it.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dom0_agent.admin import cli as agent_cli
from dom0_agent.bitmap import BitmapFile
from dom0_agent.tracking.chunk_ids import IdsFile, PagesFile
from dom0_agent.tracking.pending_log import LogFile
from tests.children import Outcome, run
from tests.conftest import folder_in_memory
from tests.kit import Site
from tests.mutation import forms
from tests.mutation.forms import Change, Field
from tests.mutation.scene import DAMAGED, VOLUMES, Scene, build
from tests.mutation.test_archive import LONG, check, chosen

KINDS = ("state", "map", "ids", "pages", "log", "archive", "key")
REFUSED, INCOMPLETE = 5, 3


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    for folder in folder_in_memory("state"):
        scene = build(folder / "site")
        scene.site.monitor()
        yield scene


def file_of(scene: Scene, kind: str) -> Path:
    """A file of each kind, below the state's folder; of b, but what only a has."""
    folder = scene.site.state / "volumes/b/private"
    fields = json.loads((folder / "state.json").read_bytes())
    (progress,) = fields["follows"].values()
    if kind == "log":
        folder = scene.site.state / "volumes/a/private"
        (pending,) = json.loads((folder / "state.json").read_bytes())["follows"].values()
        return (folder / pending["pending"]["log"]).relative_to(scene.site.state)
    if kind in ("archive", "key"):
        name = {"archive": "archive.json", "key": "key"}[kind]
        (found,) = scene.site.state.glob(f"archives/*/{name}")
        return found.relative_to(scene.site.state)
    names = {"state": "state.json", "map": progress["map"], "ids": progress["ids"]}
    names["pages"] = f"{progress['ids']}.pages"
    return (folder / names[kind]).relative_to(scene.site.state)


def changes_of(kind: str, raw: bytes) -> list[Change]:
    if kind == "state":
        tree = json.loads(raw)
        del tree["check"]
        found = [
            Change(f"{name}, forged", seal_state(changed), True)
            for name, changed in forms.in_tree(tree)
        ]
        found += [
            Change(name, json.dumps(changed).encode())
            for name, changed in forms.in_tree(json.loads(raw), (0, "x", None))
        ]
        return [*found, *forms.in_length(raw, [], None)]
    if kind == "archive":
        trees = forms.in_tree(json.loads(raw))
        found = [Change(f"{name}, forged", json.dumps(tree).encode(), True) for name, tree in trees]
        return [*found, *forms.in_length(raw, [], None)]
    if kind == "key":
        fields = [Field("key", 0, len(raw), None)]
    else:
        files = {"log": LogFile, "map": BitmapFile, "ids": IdsFile, "pages": PagesFile}
        fields = forms.fields_of(files[kind], raw)
    return [*forms.in_fields(raw, fields, None), *forms.in_length(raw, fields, None)]


def seal_state(tree: object) -> bytes:
    if not isinstance(tree, dict):
        return json.dumps(tree).encode()
    fields = {key: value for key, value in tree.items() if key != "format"}
    try:
        text = json.dumps(fields, sort_keys=True)
    except TypeError:
        text = ""
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return json.dumps({**tree, "check": digest}).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_the_state_with_other_contents(
    scene: Scene, quick_folder: Path, kind: str
) -> None:
    file, faults = file_of(scene, kind), []
    raw = (scene.site.state / file).read_bytes()
    for change in chosen(kind, changes_of(kind, raw), 2):
        site = scene.copy(quick_folder / "case")
        (site.state / file).write_bytes(change.raw)
        faults += [f"{file}: {change.name}: {one}" for one in tried(site, kind, change.forged)]
    if kind != "key" and (LONG or not random.Random(kind).randrange(2)):
        site = scene.copy(quick_folder / "case")
        (site.state / file).unlink()
        faults += [f"{file}: gone: {one}" for one in tried(site, kind, False)]
    check(faults)


def agent(site: Site, *words: str) -> "Agent":
    return Agent(site, words)


class Agent:
    """A command of the agent as a step."""

    def __init__(self, site: Site, words: tuple[str, ...]) -> None:
        self._words, self.__name__ = ["--config", str(site.config), *words], f"agent {words[0]}"

    def __call__(self) -> None:
        raise SystemExit(agent_cli.main(self._words))


def tried(site: Site, kind: str, forged: bool) -> list[str]:
    """What was wrong with what dom0 did with it."""
    faults: list[str] = []
    environ = {
        "SPARSEBAK_ARCHIVE": str(site.archive),
        "SPARSEBAK_AGENT": f"local:{site.config}",
        "HOME": str(site.root),
        "TMPDIR": str(site.root),
    }

    def all_of(*steps: object) -> list[Outcome]:
        found = run(steps, environ)  # type: ignore[arg-type]
        for outcome in found:
            if outcome.fault:
                faults.append(f"{outcome.what}: {outcome.fault}")
            elif outcome.code and not outcome.err.strip():
                faults.append(f"{outcome.what}: exit code {outcome.code} without a word")
        return found

    key = ("--passphrase-file", str(site.root / "pw"))
    all_of(agent(site, "status"), agent(site, "check"), agent(site, "archive", "list"))
    all_of(("list",), ("status",), ("verify",))
    all_of(agent(site, "monitor", "--quiet"))
    words = ("backup", "--ignore-free-space")
    first, second, third = all_of(words, words, words)
    of_archive = kind in ("archive", "key")
    for outcome in (first, second, third):
        allowed = {0, DAMAGED, INCOMPLETE, REFUSED, 10} if of_archive or forged else {0}
        allowed |= {INCOMPLETE} if outcome is first else set()  # which finds it, and mends it
        if outcome.code not in allowed:
            faults.append(f"{outcome.what}: exit code {outcome.code}: {outcome.err.strip()[-300:]}")
    # A state with a right checksum that dom0 did not write says what changed: that is root's doing.
    if third.code == 0 and not (forged and kind == "state"):
        out = site.root / "newest"
        for name in VOLUMES:
            (got,) = all_of(("assemble", name, "-o", str(out), *key))
            if got.code or out.read_bytes() != site.contents(name):
                faults.append(f"newest session of {name} after backup: {got.code} {got.err}")
            out.unlink(missing_ok=True)
        (verified,) = all_of(("verify", *key))
        if verified.code:
            faults.append(f"verify after backup: {verified.err}")
    return faults

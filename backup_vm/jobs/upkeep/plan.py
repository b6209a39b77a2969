# SPDX-License-Identifier: GPL-2.0-or-later
"""What upkeep does, from its own file (docs/upkeep.toml has every option with its meaning): what an
archive says of itself decides nothing.
"""

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backup_vm.errors import UsageError
from backup_vm.jobs.guard import Guard, taken
from backup_vm.jobs.keep_rules import DAY, Rules, parse_duration, parse_table
from backup_vm.paths import expanded, read_small
from backup_vm.quantities import Part, parse_part, setting
from backup_vm.rate import parse_rate

LARGEST = 1 << 20
"""Bytes that the file can have."""
NEVER = "never"
_TEXTS = ("place", "copy_to", "report", "metrics")
_OF_ONE = ("max_age", "sample", "older_than", "copy", "prune")


@dataclass(frozen=True)
class Plan:
    """What is done with one archive. ``max_age`` of its newest session and ``older_than`` of a
    pack's last scrub in seconds; None: no such limit. ``sample``: None for all packs that are due.
    """

    rules: Rules = field(default_factory=Rules)
    guard: Guard = field(default_factory=Guard)
    max_age: int | None = 7 * DAY
    scrub: bool = True
    sample: Part | None = Part(share=0.05)
    older_than: int | None = None
    copy: bool = True


@dataclass(frozen=True)
class Setup:
    """The whole: ``plans`` of archives that have one of their own, by name; ``ignored``: names of
    folders that are not looked into. Empty texts: not named. ``time_limit``: seconds after which no
    archive is begun.
    """

    place: str = ""
    copy_to: str = ""
    report: str = ""
    metrics: str = ""
    limit_rate: int | None = None
    time_limit: int | None = None
    ignored: frozenset[str] = frozenset()
    plan: Plan = field(default_factory=Plan)
    plans: dict[str, Plan] = field(default_factory=dict)

    def plan_of(self, name: str) -> Plan:
        """What is done with an archive."""
        return self.plans.get(name, self.plan)

    def scrubbing(self, sample: Part | None, older_than: int | None) -> "Setup":
        """A setup by which so much of each archive is scrubbed, see Plan; None: as here."""

        def changed(plan: Plan) -> Plan:
            return replace(
                plan,
                scrub=True,
                sample=sample or plan.sample,
                older_than=plan.older_than if older_than is None else older_than,
            )

        plans = {name: changed(plan) for name, plan in self.plans.items()}
        return replace(self, plan=changed(self.plan), plans=plans)


def load(path: Path) -> Setup:
    """Read and check a file; raise UsageError."""
    try:
        raw = read_small(path, LARGEST, "upkeep's settings")
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file", "docs/upkeep.toml is a sample") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        return parse(tomllib.loads(raw.decode("utf-8-sig")))
    except UnicodeDecodeError:
        raise UsageError(f"{path}: it is not UTF-8") from None
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}") from None


def parse(raw: dict[str, Any]) -> Setup:
    """What a file says; raise ValueError, UsageError."""
    raw = dict(raw)
    texts = {key: expanded(_text(key, raw.pop(key))) for key in _TEXTS if key in raw}
    rate = raw.pop("limit_rate", None)
    limit = raw.pop("time_limit", None)
    ignored = raw.pop("ignore", [])
    if not isinstance(ignored, list) or not all(isinstance(name, str) for name in ignored):
        raise ValueError("ignore must be a list of names of folders, relative to the place")
    archives = raw.pop("archives", {})
    if not isinstance(archives, dict) or not all(isinstance(v, dict) for v in archives.values()):
        raise ValueError('what is of one archive belongs in a table of its own: [archives."NAME"]')
    plan = _plan(raw, Plan(), "")
    return Setup(
        **texts,
        limit_rate=None
        if rate is None
        else setting("limit_rate", parse_rate, _text("limit_rate", rate)),
        time_limit=None
        if limit is None
        else setting("time_limit", parse_duration, _text("time_limit", limit)),
        ignored=frozenset(name.strip("/") for name in ignored),
        plan=plan,
        plans={n.strip("/"): _plan(one, plan, f"archives.{n}: ") for n, one in archives.items()},
    )


def _plan(raw: dict[str, Any], base: Plan, where: str) -> Plan:
    """A plan that differs from another one in what a table says."""
    plan = base
    for key, value in raw.items():
        if key == "prune":
            if not isinstance(value, dict):
                raise ValueError(f"{where}prune must be a table")
            value, guard = taken(value)
            plan = replace(
                plan, rules=parse_table(value, f"{where}prune"), guard=guard.over(base.guard)
            )
        elif key == "copy":
            if not isinstance(value, bool):
                raise ValueError(f"{where}copy must be true or false")
            plan = replace(plan, copy=value)
        elif key == "max_age":
            plan = replace(plan, max_age=_limit(key, value))
        elif key == "older_than":
            plan = replace(plan, older_than=_limit(key, value))
        elif key == "sample":
            text = _text(key, value)
            part = None if text in (NEVER, "all") else setting(key, parse_part, text)
            plan = replace(plan, scrub=text != NEVER, sample=part)
        else:
            of_all = () if where else (*_TEXTS, "limit_rate", "time_limit", "ignore")
            known = ", ".join((*of_all, *_OF_ONE))
            raise ValueError(f"{where}{key!r} is not a setting; known are {known}")
    return plan


def _limit(key: str, value: Any) -> int | None:
    text = _text(key, value)
    return None if text == NEVER else setting(key, parse_duration, text)


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{key} must be a text in one line")
    return value

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the page may ask to be done, and the command line for it.

Every value becomes one word of an argument list, never a shell's: an option's as
``--option=VALUE``, a positional one after ``--``, so that no value can be taken for an option.
What a value may be beyond that is for the command to say.
"""

from collections.abc import Callable, Mapping
from typing import Any

from backup_vm.config import Pruning

LONGEST = 4096
MOST_NAMES = 1000
PIN = "keep"
"""The tag that a pin in the page puts on."""


def pins(pruning: Pruning) -> str:
    """Whether the rules of the settings keep what is pinned: ``kept``, ``lost``, or ``none`` where
    there are no rules.
    """
    rules = [one for one in (pruning.rules, *pruning.by_name.values()) if one.any()]
    if not rules and not pruning.until_free:
        return "none"
    if pruning.until_free:
        rules.append(pruning.rules)
    return "kept" if all(PIN in one.tag for one in rules) else "lost"


class BadRequest(Exception):
    """The page asked for something that cannot be."""


def text(body: Mapping[str, Any], name: str) -> str:
    """A text; empty where there is none. Raises BadRequest."""
    value = body.get(name, "")
    if not isinstance(value, str) or len(value) > LONGEST or "\0" in value:
        raise BadRequest(f"{name} must be a text")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise BadRequest(f"{name} has letters that no name has") from None
    return value


def needed(body: Mapping[str, Any], name: str) -> str:
    """A text that must not be empty. Raises BadRequest."""
    value = text(body, name)
    if not value:
        raise BadRequest(f"{name} is missing")
    return value


def texts(body: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts. Raises BadRequest."""
    values = body.get(name, [])
    if not isinstance(values, list) or len(values) > MOST_NAMES:
        raise BadRequest(f"{name} must be a list")
    return [needed({name: value}, name) for value in values]


def flag(body: Mapping[str, Any], name: str) -> bool:
    """True or false; false where it is missing. Raises BadRequest."""
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false")
    return value


def _option(body: Mapping[str, Any], name: str) -> list[str]:
    value = text(body, name)
    return [f"--{name.replace('_', '-')}={value}"] if value else []


RULES = tuple(
    f"keep_{name}" for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly", "within")
)


def prune_words(body: Mapping[str, Any], dry_run: bool) -> tuple[str, ...]:
    """``sparsebak prune`` by the rules in the page's form. Raises BadRequest."""
    words = [word for name in RULES for word in _option(body, name)]
    words += [f"--keep-tag={tag}" for tag in texts(body, "keep_tag")]
    for name in ("until_free", "min_age", "max_removed"):
        words += _option(body, name)
    words.append("--dry-run" if dry_run else "--yes")
    return ("prune", *words, "--", *texts(body, "volumes"))


def tag_words(body: Mapping[str, Any]) -> tuple[str, ...]:
    """``sparsebak tag`` for one session. Raises BadRequest."""
    words = [f"--add={tag}" for tag in texts(body, "add")]
    words += [f"--remove={tag}" for tag in texts(body, "remove")]
    if "note" in body:
        words.append(f"--note={text(body, 'note')}")
    session = needed(body, "session")
    return ("tag", f"--session={session}", *words, "--", needed(body, "volume"))


def _backup(body: Mapping[str, Any]) -> tuple[str, ...]:
    words = [*_option(body, "tag"), *_option(body, "note")]
    return ("backup", *words, "--", *texts(body, "volumes"))


def _restore(body: Mapping[str, Any]) -> tuple[str, ...]:
    session = needed(body, "session")
    if not flag(body, "confirmed"):
        raise BadRequest("a restore must be confirmed")
    return (
        "restore",
        f"--session={session}",
        *_option(body, "to"),
        "--yes",
        "--",
        needed(body, "volume"),
    )


def _verify(body: Mapping[str, Any]) -> tuple[str, ...]:
    words = [*_option(body, "session"), *_option(body, "sample")]
    volume = text(body, "volume")
    return ("verify", *words, *(["--", volume] if volume else []))


def _scrub(body: Mapping[str, Any]) -> tuple[str, ...]:
    return ("scrub", *_option(body, "sample"))


def _copy(body: Mapping[str, Any]) -> tuple[str, ...]:
    return ("copy", *_option(body, "limit_rate"), "--", needed(body, "target"))


def _init(body: Mapping[str, Any]) -> tuple[str, ...]:
    words = ["--default"] if flag(body, "default") else []
    return ("init", f"--label={needed(body, 'label')}", *words, "--", needed(body, "directory"))


def _index(body: Mapping[str, Any]) -> tuple[str, ...]:
    return ("files", "index", "--", needed(body, "volume"))


JOBS: dict[str, Callable[[Mapping[str, Any]], tuple[str, ...]]] = {
    "backup": _backup,
    "restore": _restore,
    "verify": _verify,
    "scrub": _scrub,
    "prune": lambda body: prune_words(body, dry_run=False),
    "copy": _copy,
    "init": _init,
    "index": _index,
    "drill": lambda body: ("drill",),
    "keys": lambda body: ("keys", "--refresh"),
}
"""What goes through the queue, by the name that the page gives it."""


def job_words(kind: str, body: Mapping[str, Any]) -> tuple[str, ...]:
    """The command line of a piece of work. Raises BadRequest."""
    make = JOBS.get(kind)
    if make is None:
        raise BadRequest(f"there is no work called {kind[:40]!r}")
    return make(body)

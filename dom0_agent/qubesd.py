# SPDX-License-Identifier: GPL-2.0-or-later
"""The way to qubesd, through qubesadmin, which only Qubes OS has: imported when it is needed and
not before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wire.status import Code, Refused


def connect() -> Any:
    """A qubesadmin.Qubes that remembers what it was answered, or Refused where there is none."""
    try:
        import qubesadmin
    except ImportError:
        raise Refused(
            Code.INTERNAL,
            "this needs qubesadmin, which only Qubes OS has; elsewhere use catalog 'static'",
        ) from None
    app = qubesadmin.Qubes()
    app.cache_enabled = True
    return app


@contextmanager
def asking() -> Iterator[None]:
    """Turns what qubesadmin raises into a refusal."""
    try:
        yield
    except Exception as error:
        if type(error).__module__ != "qubesadmin.exc":
            raise
        raise Refused(Code.INTERNAL, f"qubesd: {error}") from None

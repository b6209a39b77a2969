# SPDX-License-Identifier: GPL-2.0-or-later
"""``typing.override``: what a method does is said by the class that declares it.

Python has it from 3.12 on. Before, it is a mark that does nothing; the type checker knows it in
either case, and refuses one on a method that overrides nothing.
"""

from typing import TYPE_CHECKING, TypeVar

__all__ = ["override"]

if TYPE_CHECKING:
    from typing_extensions import override  # of the type checker's own stubs; never installed
else:
    try:
        from typing import override
    except ImportError:
        Method = TypeVar("Method")

        def override(method: Method, /) -> Method:
            """Mark a method that overrides one of a base class."""
            return method

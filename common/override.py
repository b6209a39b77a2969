"""``typing.override``: what a method does is said by the class that declares it.

Python has it from 3.12 on; before that it is a mark that does nothing. The type checker, which
reads override.pyi instead, refuses one that overrides nothing, whatever the version.
"""

import sys

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing import TypeVar

    Method = TypeVar("Method")

    def override(method: Method, /) -> Method:
        """Mark a method that overrides one of a base class."""
        return method

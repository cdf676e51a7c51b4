"""Where a function can be found again by another process."""

from __future__ import annotations

from functools import partial
from typing import Any

__all__ = ["entrypoint_of"]


def entrypoint_of(fn: Any) -> str | None:
    """`path/of/file.py:name` of a function, its name with all that it stands in; None of what is not written in a file.

    A path and not a module's name: a script is called `__main__` wherever it runs.
    """
    while isinstance(fn, partial):
        fn = fn.func
    code, name = getattr(fn, "__code__", None), getattr(fn, "__qualname__", None)
    if code is None or name is None or not code.co_filename.endswith(".py"):
        return None
    return f"{code.co_filename}:{name}"

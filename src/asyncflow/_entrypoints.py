"""Where a function can be found again by another process, and what its module is called there."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["LOADED_FILE", "entrypoint_of", "module_name"]

LOADED_FILE = "_asyncflow_entrypoint_"
"""What the name of a module begins with that was loaded from a file whose own name was taken."""


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


def module_name(name: str) -> str:
    """The name of a module that is the same however its file was run: `python FILE`, `python -m`, imported, loaded.

    What is recorded of a function or class names it by this; as `__main__` it would not be found again.
    """
    if name.startswith(LOADED_FILE):
        return name.removeprefix(LOADED_FILE)
    if name != "__main__":
        return name
    main = sys.modules.get(name)
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    return name if file is None else Path(file).stem

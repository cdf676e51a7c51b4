"""The next start: what was interrupted goes on, and ends. `python -m tests.stop_programs.again BACKEND module|file`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import anyio

from asyncflow import Runtime


async def main() -> None:
    async with Runtime():
        pass


if __name__ == "__main__":
    _, backend, how = sys.argv
    if how == "file":  # as the command line loads it, and its tasks' keys begin with the module's name
        sys.path.insert(0, str(Path(__file__).parent))
        import_module("work")
    else:
        import_module("tests.stop_programs.work")
    anyio.run(main, backend=backend)

"""The command line: `asyncflow run`, `asyncflow runs`, `asyncflow serve`, `asyncflow deployments`, `asyncflow gc`, ...

Its libraries come with the extra `cli`, and nothing else in asyncflow imports this package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

__all__ = ["main"]

_run_command: Callable[[Sequence[str]], int] | None
try:
    from asyncflow.cli.app import run_command as _run_command
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("cyclopts", "rich"):
        raise
    _run_command = None


def main() -> int:
    """Run the command that the process was started with; gives its exit status."""
    if _run_command is None:
        sys.stderr.write('asyncflow: the command line needs the extra "cli": pip install "asyncflow[cli]"\n')
        return 2
    return _run_command(sys.argv[1:])

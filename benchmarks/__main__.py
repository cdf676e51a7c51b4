"""`python -m benchmarks [--quick] [--json FILE] [--backend asyncio|trio|uvloop|all] [ROW ...]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import benchmarks.rows  # noqa: F401  # fills the registry
from benchmarks.registry import LOOPS, Row, rows
from benchmarks.table import Line, failed, render, summarize

PROJECT = Path(__file__).parent.parent


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What asyncflow costs, as ratios.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="these rows only, the optional ones too; see --list")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and three repetitions: does it work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here as well")
    parser.add_argument("--backend", choices=[*LOOPS, "all"], default="all", help="rows without a loop run in any case")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.rows) - rows.keys())
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; --list names them")
    return asked


def chosen(asked: argparse.Namespace) -> Iterator[tuple[Row, str]]:
    """The rows to measure, with the backend of each."""
    for row in rows.values():
        if row.key in asked.rows or not (asked.rows or row.optional):
            for backend in row.backends:
                if backend == asked.backend or asked.backend == "all" or backend not in LOOPS:
                    yield row, backend


def measure(row: Row, backend: str, *, quick: bool, pycache: str) -> Line:
    """One line, in a fresh process with an empty home."""
    with TemporaryDirectory(prefix="asyncflow-bench-") as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ASYNCFLOW_")}
        environment |= {"ASYNCFLOW_HOME": str(Path(folder) / "home"), "PYTHONPYCACHEPREFIX": pycache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-m", "benchmarks.worker", row.key, backend, "quick" if quick else "full"]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return failed(row, backend, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return summarize(row, backend, json.loads(done.stdout.splitlines()[-1]))


def machine() -> dict[str, Any]:
    """Where this was measured."""
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and say by the exit status whether everything is within its budget."""
    asked = parse(sys.argv[1:] if arguments is None else arguments)
    if asked.list:
        print("\n".join(f"{row.key:20} {row.title}{' (optional)' if row.optional else ''}" for row in rows.values()))
        return 0
    where = machine()
    lines: list[Line] = []
    with TemporaryDirectory(prefix="asyncflow-bench-pycache-") as pycache:
        for row, backend in chosen(asked):
            print(f"{row.title} ({backend})", file=sys.stderr, flush=True)
            lines.append(measure(row, backend, quick=asked.quick, pycache=pycache))
    load = where["load"]
    print(f"Python {platform.python_version()}, {where['platform']}, {where['processors']} processors, load {load}")
    print(render(lines))
    if asked.json:
        asked.json.write_text(
            json.dumps({"machine": where, "rows": [line.as_json() for line in lines]}, indent=2) + "\n"
        )
    return 1 if any(line.is_over or line.error for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())

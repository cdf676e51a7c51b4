"""Every check of the project: `nox` runs lint, types and tests; `nox -l` lists all sessions.

`tests` runs on each CPython of PYTHONS that is installed; a missing one is reported as skipped,
unless `--error-on-missing-interpreters` is given.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import nox

PYTHONS = ("3.11", "3.12", "3.13")

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"


def show_pyenv_interpreters() -> None:
    """Let pyenv's `python3.12` work whichever version is selected: its shims refuse the others."""
    if "PYENV_VERSION" in os.environ or shutil.which("pyenv") is None:
        return
    listed = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True)
    ours = [name for name in listed.stdout.split() if name.startswith(tuple(f"{v}." for v in PYTHONS))]
    if ours:
        os.environ["PYENV_VERSION"] = ":".join(ours)


show_pyenv_interpreters()


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Both type checkers, in their strict modes."""
    session.install("-e", ".[dev]")
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "asyncflow")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The test suite against the built package; arguments after `--` go to pytest."""
    session.install(".[dev]")
    session.run("pytest", "-m", "not static", *session.posargs)


@nox.session(python=PYTHONS)
def tests_lowest(session: nox.Session) -> None:
    """The test suite with the lowest version of each dependency that pyproject.toml allows."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["cli"] + extras["otel"] + extras["schedules"]
    lowest = Path(session.create_tmp()) / "lowest.txt"
    pins = [line.replace(">=", "==") for line in wanted]
    pins.append("pytest<9.2")  # the pytest plugin of anyio 4.14.2 uses a name that pytest 9.2 dropped
    lowest.write_text("\n".join(pins))
    session.install("-c", str(lowest), ".[dev]")
    session.run("pytest", "-m", "not static", *session.posargs)


@nox.session
def crash(session: nox.Session) -> None:
    """Kills, power cuts and failing disks, as often as a release wants; takes about half an hour."""
    session.install("-e", ".[dev]")
    often = {"KILLS": "200", "CUTS": "5000", "SEEDS": "500"}
    files = ("kill", "kill_syscalls", "power_cut", "disk_faults", "resume_kill")
    session.run("pytest", *(f"tests/test_{name}.py" for name in files), *session.posargs, env=often)
    often = {"SLOTS": "10000", "RUNS": "10000", "KILLS": "50", "STOPPED": "20"}
    torture = (f"tests/test_{name}_torture.py" for name in ("schedule", "queue", "places"))
    session.run("pytest", *torture, *session.posargs, env=often)


@nox.session
def services(session: nox.Session) -> None:
    """The examples under web servers: four workers for a minute, 1,000 starts and stops."""
    session.install("-e", ".[dev]")
    often = {"SECONDS": "60", "CYCLES": "1000"}
    session.run("pytest", "tests/test_frameworks_workers.py", "tests/test_frameworks_lifespan.py", env=often)


@nox.session
def stops(session: nox.Session) -> None:
    """Every kind of host told to stop in the middle of everything; takes about half an hour."""
    session.install("-e", ".[dev]", "uvicorn", "gunicorn", "aiohttp", "hypercorn[trio]")
    often = {"STOPS": "all", "INSTANTS": "500"}
    session.run("pytest", "tests/test_stop_matrix.py", "tests/test_stop_signals.py", *session.posargs, env=often)


@nox.session
def coverage(session: nox.Session) -> None:
    """The test suite under branch coverage."""
    session.install("-e", ".[dev]")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-m", "not static", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, built with every warning an error."""
    session.install(".[docs]")
    session.run("mkdocs", "build", "--strict", "--site-dir", f"{session.create_tmp()}/site")


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks, as ratios in one table; arguments after `--` go to them."""
    session.install(".[dev]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """The README's main job."""
    session.install(".[cli]")
    session.run("asyncflow", "run", "examples/weather.py:weather", *session.posargs)

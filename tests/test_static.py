"""The linter and the type checkers, so that one command (`pytest`) is the whole gate.

nox runs the same tools in its `lint` and `types` sessions; their settings are in pyproject.toml.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent

# A cold run of a type checker over the project takes longer than a test is otherwise given.
pytestmark = [pytest.mark.static, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "--no-cache", "."], id="ruff-check"),
        pytest.param(["ruff", "format", "--no-cache", "--check", "."], id="ruff-format"),
        pytest.param(["mypy"], id="mypy"),
        # Told which environment to read: it would take the first `python` on PATH.
        pytest.param(["pyright", "--pythonpath", sys.executable], id="pyright"),
    ],
)
def test_has_no_complaint(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"

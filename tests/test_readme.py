"""What README.md and docs/ tell people to run, run.

Each ```python block is a script of its own, in a fresh process and an empty folder. An HTML comment
just above a block changes that: `<!-- not run: why -->`, or `<!-- needs: package -->` for one that is
skipped where the package is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sqlite3
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import RunPython

PROJECT = Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- (?P<rule>not run|needs): (?P<what>[^\n]+?) -->\n)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: Path) -> Iterator[tuple[int, re.Match[str]]]:
    """The Python blocks of a page, each with the number of its first line."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        yield text.count("\n", 0, match.start("code")) + 1, match


def examples() -> Iterator[object]:
    for page in PAGES:
        for line, match in blocks(page):
            marks: list[pytest.MarkDecorator] = []
            if match["rule"] == "not run":
                marks.append(pytest.mark.skip(reason=match["what"]))
            elif match["rule"] == "needs" and importlib.util.find_spec(match["what"]) is None:
                marks.append(pytest.mark.skip(reason=f"needs {match['what']}"))
            name = f"{page.relative_to(PROJECT)}:{line}"
            yield pytest.param(match["code"], id=name, marks=marks)


@pytest.mark.parametrize("code", list(examples()))
def test_example_runs(code: str, tmp_path: Path, run_python: RunPython) -> None:
    script = tmp_path / "example.py"
    script.write_text(code)
    run_python(script)


def readme_block(containing: str) -> str:
    """The one code block of the README, of any language, that holds the text."""
    found: list[str] = [
        block for block in re.findall(r"^```\w*\n(.*?)^```$", PAGES[0].read_text(), re.M | re.S) if containing in block
    ]
    assert len(found) == 1, f"{len(found)} blocks of README.md hold {containing!r}"
    return found[0]


def test_ci_runs_the_command_of_the_readme() -> None:
    command = readme_block("'.[dev]'").strip()
    assert command in (PROJECT / ".ci/run").read_text().splitlines()


def test_main_job_of_the_readme(tmp_path: Path, home: Path) -> None:
    """The first command, without its installation, and what the README says can be looked at then."""
    words = shlex.split(readme_block("'.[cli]'").strip().rpartition("&&")[2])
    assert words[0] == ".venv/bin/asyncflow"
    script = Path(sysconfig.get_path("scripts")) / "asyncflow"
    command = [str(script), *(str(PROJECT / word) if word.startswith("examples/") else word for word in words[1:])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    summary = json.loads((tmp_path / "weather-summary.json").read_text())
    assert json.loads(done.stdout) == summary
    assert summary["days"] == 1461
    # Worked out from the table by other code than the example's.
    assert [(year["year"], year["temp_mean"], year["precipitation"]) for year in summary["years"]] == [
        (2012, 11.28, 1226.0),
        (2013, 12.11, 828.0),
        (2014, 12.83, 1232.8),
        (2015, 13.13, 1139.2),
    ]
    assert summary["trend"]["per_year"] == 0.581
    assert summary["trend"]["low"] < 0.581 < summary["trend"]["high"]

    with closing(sqlite3.connect(home / "asyncflow.db")) as database:
        assert database.execute("PRAGMA quick_check").fetchone() == ("ok",)
    results = list((home / "results").glob("*/result.json"))
    assert len(results) == 1
    assert json.loads(results[0].read_text()) is not None


def test_fastapi_example_answers(tmp_path: Path, run_python: RunPython) -> None:
    pytest.importorskip("fastapi")
    client = """
import anyio, httpx

async def ask():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.get("/price/apple")
    print(answer.status_code, answer.json())

anyio.run(ask)
"""
    done = run_python(readme_block("from fastapi import FastAPI") + client)
    assert done.stdout == "200 {'name': 'apple', 'cents': 120}\n"

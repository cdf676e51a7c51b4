"""`asyncflow doctor`: what is wrong with a home, and what to do."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from asyncflow.cli.home import Home, use_home
from asyncflow.cli.output import json_text, one_line, table_console, write_data
from asyncflow.doctor import Finding, Report, examine

__all__ = ["doctor"]

_SHOWN = 5
_MARKS = {"problem": ("✗", "red"), "repaired": ("✓", "green"), "note": ("·", "dim")}
_LONGEST = 600


def doctor(
    *,
    repair: Annotated[
        bool,
        Parameter(help="Mend what can be mended; the database itself is only read.", negative=""),
    ] = False,
    json: Annotated[bool, Parameter(name="--json", help="One JSON document.", negative="")] = False,
    home: Home = None,
) -> int:
    """Examine a home: its database, its files, and what dead processes left behind.

    The exit status is 0 when all is well, 1 when a problem is left.
    """
    use_home(home)
    report = examine(repair=repair)
    if json:
        write_data(json_text(report.as_json()))
    else:
        _print(table_console(), report)
    return 0 if report.is_sound else 1


def _print(console: Console, report: Report) -> None:
    console.print(Text(report.home, "bold"), soft_wrap=True)
    for line in _facts(report):
        console.print(Text(f"  {line}"), soft_wrap=True)
    for finding in report.findings:
        _print_finding(console, finding)
    problems = len(report.problems)
    verdict = "no problems" if not problems else "1 problem" if problems == 1 else f"{problems} problems"
    console.print(Text(verdict, "bold red" if problems else "bold green"))


def _facts(report: Report) -> list[str]:
    facts = report.facts
    if "runs" not in facts:
        return []
    return [
        f"schema {facts['schema_version']}, SQLite {facts['sqlite_version']}, {facts['journal_mode']}",
        f"{facts['outermost_runs']:,} outermost runs, {facts['runs']:,} runs in all, {facts['log_lines']:,} log lines, "
        f"{facts['cached_values']:,} cached values",
        f"{_size(facts['database_bytes'])} of database ({_size(facts['free_bytes'])} free), "
        f"{_size(facts['cited_bytes'])} in {facts['cited_files']:,} files",
        f"in use by {', '.join(facts['processes']) or 'no process'}",
    ]


def _print_finding(console: Console, finding: Finding) -> None:
    mark, style = _MARKS[finding.level]
    console.print(Text.assemble((f"{mark} ", style), one_line(finding.what, _LONGEST)), soft_wrap=True)
    for example in finding.examples[:_SHOWN]:
        console.print(Text(f"    {one_line(example)}", "dim"), soft_wrap=True)
    if len(finding.examples) > _SHOWN:
        console.print(Text("    … `--json` lists more", "dim"))
    if finding.remedy is not None:
        console.print(Text(f"    {one_line(finding.remedy, _LONGEST)}"), soft_wrap=True)


def _size(number: int) -> str:
    size = float(number)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"

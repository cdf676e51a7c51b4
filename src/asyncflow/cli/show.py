"""One run for people: facts, states, the runs it called, and its result or error."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.text import Text

from asyncflow._rows import FLOW, STAND_IN, STATE_CODES, RunRow, flow_run_of, moment, parameters_of, task_run_of
from asyncflow.cli.live import state_style, tree_line
from asyncflow.cli.output import duration_between, one_line, printable
from asyncflow.cli.run_table import due_words
from asyncflow.cli.schemas import schema_lines, type_words
from asyncflow.cli.tree import build_tree, counts, lay_out
from asyncflow.runs import FlowRun
from asyncflow.states import State, StateType

__all__ = ["print_run"]

_SCHEDULED = STATE_CODES[StateType.SCHEDULED]
_MOST_LINES = 60
_LONGEST_RESULT = 2_000


def print_run(
    console: Console, rows: Sequence[RunRow], states: Sequence[State[Any]], deployment: str | None = None
) -> None:
    """Print the first of `rows`, which is followed by everything below it. `deployment` is the name of its own."""
    row = rows[0]
    head = [*_facts(row, deployment), *_waits_for(states[-1], row)]
    for line in [*head, *_states(row, states), *_tree(rows), *_parameters(row), *_error(row), *_result(row)]:
        console.print(line, soft_wrap=True)


def _title(text: str) -> Text:
    return Text(f"\n{text}", "bold")


def _facts(row: RunRow, deployment: str | None) -> Iterator[Text]:
    run = flow_run_of(row) if row.kind == FLOW else task_run_of(row)
    mark, style = state_style(run.state.type)
    kind = "flow run" if row.kind == FLOW else "task run"
    yield Text.assemble(
        (f"{mark} {run.state.name}", style), f"  {kind} {one_line(run.name)} of ", (one_line(row.function), "bold")
    )
    facts: list[tuple[str, object]] = [("id", run.id)]
    if row.started is not None and row.ended is not None:
        facts.append(("took", duration_between(row.started, row.ended)))
    if run.run_count > 1:
        facts.append(("attempts", run.run_count))
    if run.tags:
        facts.append(("tags", ", ".join(run.tags)))
    if isinstance(run, FlowRun):
        facts += [("version", run.flow_version), ("called by flow run", run.parent_flow_run_id)]
        facts += [("deployment", deployment or run.deployment_id), ("due", _due(row)), ("key", row.idempotency_key)]
    else:
        facts += [
            ("in flow run", run.flow_run_id),
            ("called by task run", run.parent_task_run_id),
            ("stands for flow run", run.child_flow_run_id),
        ]
    yield from (Text(f"  {name}: {printable(str(value))}") for name, value in facts if value is not None)


def _due(row: RunRow) -> str | None:
    """When it was to begin, and how much later it did."""
    if row.scheduled is None:
        return None
    words = f"{moment(row.scheduled).astimezone():%Y-%m-%d %H:%M:%S}"
    if row.started is not None and row.run_count <= 1:
        return f"{words}, begun {duration_between(row.scheduled, max(row.started, row.scheduled))} later"
    if row.state == _SCHEDULED:
        return f"{words}, {due_words(row.scheduled, time.time_ns() // 1000)}"
    return words


def _waits_for(state: State[Any], row: RunRow) -> Iterator[Text]:
    """What a paused run needs to go on, and the command that gives it."""
    if not state.is_paused() or row.kind != FLOW:
        return
    details, run_id = state.state_details, UUID(bytes=row.id)
    yield _title("Waits for")
    words = f"  asyncflow runs resume {run_id}"
    if details.pause_key is not None:
        yield Text(f"  its pause {details.pause_key!r} to be answered")
    if details.input_schema is not None:
        yield Text(f"  an input: {one_line(type_words(details.input_schema))}")
        for name, kind, default in schema_lines(details.input_schema, {}):
            yield Text(f"    {one_line(name)}: {one_line(kind)}{f' = {default}' if default else ''}")
        words += " --input JSON"
    if details.pause_timeout is not None:
        until = details.pause_timeout.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        yield Text(f"  until {until}")
    yield Text(words, "bold")


def _states(row: RunRow, states: Sequence[State[Any]]) -> Iterator[Text]:
    yield _title("States")
    for state in states:
        at = state.timestamp.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        text = Text.assemble((f"  {at}", "dim"), "  ", (state.name, state_style(state.type)[1]))
        yield text.append(f"  {one_line(state.message, 1000)}" if state.message else "")


def _tree(rows: Sequence[RunRow]) -> Iterator[Text]:
    below = [each for each in rows[1:] if each.kind != STAND_IN]
    root = build_tree(rows)
    if below and root is not None:
        yield _title("Runs below it")
        yield from (
            Text("  ") + tree_line(line) for line in lay_out(root, int(time.time() * 1_000_000), _MOST_LINES)[1:]
        )
        yield Text(f"  {counts(below)}", "dim")


def _parameters(row: RunRow) -> Iterator[Text]:
    if row.parameters not in (None, "{}"):
        yield _title("Parameters")
        for name, value in parameters_of(row).items():
            yield Text(f"  {one_line(name)} = {one_line(json.dumps(value, ensure_ascii=False))}")


def _error(row: RunRow) -> Iterator[Text]:
    if row.error is not None:
        error = json.loads(row.error)
        yield _title("Error")
        yield Text(printable(error.get("traceback") or f"{error.get('type')}: {error.get('message')}").rstrip())


def _result(row: RunRow) -> Iterator[Text]:
    if row.result_file is not None:
        cited = json.loads(row.result_file)
        yield _title("Result")
        yield Text(f"  {cited['size']:,} bytes of JSON in {cited['path']} below the home")
    elif row.result is not None:
        yield _title("Result")
        text = json.dumps(json.loads(row.result), indent=2, ensure_ascii=False)
        yield Text(printable(text[:_LONGEST_RESULT]))
        if len(text) > _LONGEST_RESULT:
            yield Text("  … `asyncflow runs result` prints all of it", "dim")
    elif row.details is not None and (reason := json.loads(row.details).get("not_kept")):
        yield _title("Result")
        yield Text(f"  not recorded: {printable(str(reason))}")

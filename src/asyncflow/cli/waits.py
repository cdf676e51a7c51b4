"""`asyncflow runs tree`: the runs that go on, and what each waits for, told by the processes that run them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from asyncflow._live_requests import Answer, Request, unsay_off
from asyncflow._rows import FIRST_FINAL, FLOW, STATE_TYPES, TASK, RunRow
from asyncflow._services import Services
from asyncflow.abc import RunQuery
from asyncflow.cli.home import Home, open_recorded
from asyncflow.cli.live import tree_line
from asyncflow.cli.output import complain, json_text, table_console, write_data
from asyncflow.cli.records import show_json
from asyncflow.cli.tree import build_tree, lay_out
from asyncflow.cli.words import AsJSON, id_of
from asyncflow.exceptions import RunNotFoundError
from asyncflow.stores.sqlite import SQLiteStore

__all__ = ["tree"]

_ANSWER_SECONDS = 3.0
_POLL_SECONDS = 0.02
_MOST_LINES = 1_000
_MOST_RUNS = 10_000
_OPEN = frozenset(type_ for code, type_ in enumerate(STATE_TYPES) if code < FIRST_FINAL)


@dataclass
class _Owner:
    """A process (or a runtime in one) that has the home open."""

    number: int
    pid: int
    host: str
    answer: Answer | None = None
    why: str | None = None
    """Why there is no answer."""
    open: list[RunRow] = field(default_factory=list[RunRow])
    """Of one that does not answer: what is recorded as being run by it."""

    @property
    def is_told(self) -> bool:
        """Whether it told of any run."""
        return self.answer is not None and self.answer.has_runs


def tree(
    run_id: Annotated[str | None, Parameter(help="The id of a flow run or a task run; else all that go on.")] = None,
    /,
    *,
    live: Annotated[
        bool | None,
        Parameter(
            name="--live",
            negative="--recorded",
            help="Only what the processes say, or only what is recorded; else the latter where nobody answers.",
        ),
    ] = None,
    json: AsJSON = False,
    home: Home = None,
) -> int:
    """Show the runs that go on and what each waits for: a limit and who holds it, another run, a line of code.

    The processes on the home are asked, and have three seconds to answer. Of those that do not, and of
    runs that have ended, the tree that is recorded is shown.
    """
    services = open_recorded(home)
    owners = [] if live is False else _ask(services, run_id)
    if live is False or (live is None and run_id is not None and not any(each.is_told for each in owners)):
        recorded = _recorded(services, run_id)
    else:
        recorded = [] if live else [row for each in owners if each.why is not None for row in each.open]
    trees = [services.store.read_tree(row.id) for row in recorded]
    if json:
        write_data(json_text({"processes": [_as_data(each) for each in owners], "recorded": _as_json(trees)}))
    else:
        _print(owners, trees)
    for each in owners:
        if each.why is not None and each.open:
            complain(f"pid {each.pid} on {each.host}: {each.why}")
    return 0


# --- asking ----------------------------------------------------------------------------------


def _ask(services: Services, run_id: str | None) -> list[_Owner]:
    """The owners of the home, each with its answer or why there is none."""
    store = services.store
    assert isinstance(store, SQLiteStore)  # the command line opens no other
    owners = {each.id: _Owner(each.id, each.pid, each.host) for each in store.living()}
    if not owners:
        return []
    try:
        request = Request(services.settings.home, None if run_id is None else id_of(run_id))
    except OSError as error:
        complain(f"the processes cannot be asked: {error}")
        return []
    try:
        store.ring(owners)
        off = {number for number in owners if request.is_off(number)}
        answers = _await(request, owners.keys() - off, is_one_enough=run_id is not None)
    finally:
        request.close()
    alive = {each.id for each in store.living()}
    unsay_off(services.settings.home, owners.keys() - alive)
    is_found = run_id is not None and any(each.has_runs for each in answers.values())
    for number, owner in owners.items():
        owner.answer = answers.get(number)
        if owner.answer is None and not is_found:
            owner.why = _why_silent(owner, is_off=number in off)
    told = [each for each in owners.values() if each.answer is not None or each.number in alive]
    if any(each.why is not None for each in told):
        for row in _recorded(services, run_id):
            if row.owner in owners:
                owners[row.owner].open.append(row)
    return told


def _await(request: Request, expected: Set[int], *, is_one_enough: bool) -> dict[int, Answer]:
    until = time.monotonic() + _ANSWER_SECONDS
    while True:
        answers = request.answers()
        is_found = is_one_enough and any(each.has_runs for each in answers.values())
        if is_found or expected <= answers.keys() or time.monotonic() >= until:
            return answers
        time.sleep(_POLL_SECONDS)


def _why_silent(owner: _Owner, *, is_off: bool) -> str:
    if is_off:
        return "it answers nobody, because its upkeep is off (upkeep_seconds=0)"
    if owner.host == os.uname().nodename and _is_stopped(owner.pid):
        return f"it did not answer within {_ANSWER_SECONDS:g} s: it is stopped, by a signal or a debugger"
    return (
        f"it did not answer within {_ANSWER_SECONDS:g} s: a call that holds the interpreter lock blocks it, "
        f"the machine is overloaded, or its upkeep_seconds is longer"
    )


def _is_stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] in "Tt"


# --- showing ---------------------------------------------------------------------------------


def _recorded(services: Services, run_id: str | None) -> list[RunRow]:
    """The run that was asked for, or all outermost ones that have not ended, oldest first."""
    if run_id is not None:
        row = services.store.read_run(id_of(run_id))
        if row is None:
            raise RunNotFoundError(run_id, services.settings.home)
        return [row]
    query = RunQuery(kinds=frozenset({FLOW, TASK}), states=_OPEN, limit=_MOST_RUNS)
    return [row for row in reversed(services.store.read_runs(query)) if row.parent_id is None]


def _print(owners: Sequence[_Owner], trees: Sequence[Sequence[RunRow]]) -> None:
    console = table_console()
    for each in owners:
        if each.answer is not None and each.is_told:
            console.print(f"pid {each.pid} on {each.host}:", soft_wrap=True)
            console.print(each.answer.text, soft_wrap=True)
    for rows in trees:
        root = build_tree(rows)
        if root is not None:
            console.print("as recorded:", soft_wrap=True)
            for line in lay_out(root, time.time_ns() // 1000, _MOST_LINES):
                console.print(tree_line(line))
    if not trees and not any(each.is_told for each in owners):
        console.print("no live runs")


def _as_data(owner: _Owner) -> dict[str, Any]:
    answer = owner.answer
    return {"pid": owner.pid, "host": owner.host, "tree": None if answer is None else answer.tree, "why": owner.why}


def _as_json(trees: Sequence[Sequence[RunRow]]) -> list[dict[str, Any]]:
    return [show_json(rows, []) for rows in trees if rows]

"""The tree of runs as lines: what is shown, what shares a line, and that it always fits."""

from __future__ import annotations

from asyncflow._rows import FLOW, STAND_IN, STATE_CODES, TASK, RunRow
from asyncflow.cli.tree import Node, build_tree, counts, lay_out
from asyncflow.states import StateType

COMPLETED, FAILED, RUNNING, CANCELLED = StateType.COMPLETED, StateType.FAILED, StateType.RUNNING, StateType.CANCELLED
NOW = 10_000_000


class Rows:
    """Makes rows as the engine does: a run's id is above its parent's."""

    def __init__(self) -> None:
        self.rows: list[RunRow] = []

    def add(
        self,
        kind: int,
        function: str,
        state: StateType,
        parent: bytes | None = None,
        *,
        name: str | None = None,
        message: str | None = None,
        run_count: int = 1,
    ) -> bytes:
        stand_in = None
        if kind == FLOW and parent is not None:
            stand_in = self._append(STAND_IN, function, state, parent, name, message, run_count)
        return self._append(kind, function, state, stand_in or parent, name, message, run_count)

    def _append(
        self,
        kind: int,
        function: str,
        state: StateType,
        parent: bytes | None,
        name: str | None,
        message: str | None,
        run_count: int,
    ) -> bytes:
        run_id = (len(self.rows) + 1).to_bytes(16)
        started = 1_000_000
        self.rows.append(
            RunRow(
                id=run_id,
                kind=kind,
                parent_id=parent,
                flow_run_id=None,
                function=function,
                key=function,
                name=name,
                state=STATE_CODES[state],
                state_name=None,
                message=message,
                created=started,
                started=started,
                ended=started + 500_000 if state.is_final else None,
                run_count=run_count,
                seq=3,
                tags=None,
                parameters=None,
                result=None,
                result_file=None,
                error=None,
                history=None,
                details=None,
                digest=None,
                owner=0,
            )
        )
        return run_id

    def tree(self) -> Node:
        root = build_tree(self.rows)
        assert root is not None
        return root

    def lines(self, height: int = 50) -> list[str]:
        lines = lay_out(self.tree(), NOW, height)
        return [" ".join(f"{line.guide}{line.label} {line.name} {line.note}".split()) for line in lines]


def test_nested_flow_takes_the_place_of_the_task_run_that_stands_for_it() -> None:
    rows = Rows()
    top = rows.add(FLOW, "top", RUNNING, name="a")
    inner = rows.add(FLOW, "inner", RUNNING, top, name="b")
    rows.add(TASK, "work", RUNNING, inner)
    assert rows.lines() == [
        "top a Running 9.0 s",
        "└─ inner b Running 9.0 s",
        "└─ work Running 9.0 s",
    ]
    assert counts(rows.rows) == "2 flow runs and 1 task run: 3 Running"


def test_finished_tasks_of_one_name_share_a_line_and_the_others_do_not() -> None:
    rows = Rows()
    top = rows.add(FLOW, "top", RUNNING, name="a")
    for number in range(48):
        rows.add(TASK, "clean", COMPLETED, top, run_count=2 if number == 7 else 1)
    bad = rows.add(TASK, "clean", FAILED, top, message="ValueError: bad\nitem \x1b[31m")
    rows.add(TASK, "clean", RUNNING, top, name="clean-49")
    rows.add(TASK, "load", CANCELLED, top, name="load-1")
    assert rows.lines() == [
        "top a Running 9.0 s",
        "├─ clean \N{MULTIPLICATION SIGN} 48 0.5 s, 1 retry",
        f"├─ clean clean-{bad.hex()[-3:]} Failed 0.5 s ValueError: bad item \N{REPLACEMENT CHARACTER}[31m",
        "├─ clean clean-49 Running 9.0 s",
        "└─ load load-1 Cancelled 0.5 s",
    ]


def test_flow_that_went_wrong_stays_open_and_one_that_ended_well_closes_first() -> None:
    rows = Rows()
    top = rows.add(FLOW, "top", RUNNING, name="a")
    for name, state in (("good", COMPLETED), ("bad", FAILED)):
        part = rows.add(FLOW, "part", COMPLETED, top, name=name)
        rows.add(TASK, "first", COMPLETED, part)
        rows.add(TASK, "second", state, part, name=f"{name}-2")
    assert len(rows.lines(7)) == 7
    assert rows.lines(6) == [
        "top a Running 9.0 s",
        "├─ part good 0.5 s 2 runs",
        "└─ part bad 0.5 s",
        "├─ first 0.5 s",
        "└─ second bad-2 Failed 0.5 s",
    ]
    assert rows.lines(4) == [
        "top a Running 9.0 s",
        "├─ part good 0.5 s 2 runs",
        "└─ part bad 0.5 s 2 runs, 1 failed",
    ]


def test_it_never_has_more_lines_than_there_is_room_for() -> None:
    rows = Rows()
    top = rows.add(FLOW, "top", RUNNING, name="a")
    for number in range(30):
        part = rows.add(FLOW, f"part{number % 7}", COMPLETED if number % 2 else RUNNING, top, name=str(number))
        for item in range(30):
            rows.add(TASK, f"task{item % 5}", (COMPLETED, FAILED, RUNNING)[item % 3], part)
    for height in (*range(2, 40), 100, 400):
        lines = rows.lines(height)
        assert len(lines) <= height
        assert lines[0].startswith("top a Running")
    assert rows.lines(3)[-1] == "… 13 more lines"


def test_deep_chain_of_runs_fits_as_well() -> None:
    rows = Rows()
    parent = rows.add(FLOW, "top", RUNNING, name="a")
    for _ in range(300):
        parent = rows.add(TASK, "deeper", RUNNING, parent)
    assert len(rows.lines(20)) <= 20


def test_nothing_yet_is_no_tree() -> None:
    assert build_tree([]) is None

"""The tree of runs as lines of text, never more than there is room for.

Pure: rows and a height in, lines out. It is laid out in ever less detail until it fits: first
every flow is open and every run that goes on has a line, at last alike ones share one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from asyncflow._rows import FIRST_FINAL, FLOW, STAND_IN, STATE_CODES, STATE_TYPES, RunRow, default_task_run_name
from asyncflow.cli.output import duration_between, one_line
from asyncflow.states import StateType

__all__ = ["Line", "Node", "build_tree", "counts", "lay_out", "state_name"]

_COMPLETED = STATE_CODES[StateType.COMPLETED]
_CANCELLED = STATE_CODES[StateType.CANCELLED]
_BAD = frozenset({STATE_CODES[StateType.FAILED], STATE_CODES[StateType.CRASHED]})
_LONGEST_MESSAGE = 120


class Line(NamedTuple):
    """One line: the branches drawn before it, then its parts."""

    guide: str
    state: StateType
    label: str
    name: str
    note: str


@dataclass(slots=True)
class Node:
    """A run and the runs it called. The task run that stands for a nested flow has none: the flow takes its place."""

    row: RunRow
    children: list[Node] = field(default_factory=list["Node"])
    below: int = 0
    """How many runs are below it, at any depth; `ended` and `bad` are how many of them."""
    ended: int = 0
    bad: int = 0
    """Failed or crashed."""

    @property
    def is_bad(self) -> bool:
        """Whether it or a run below it failed or crashed."""
        return bool(self.bad) or self.row.state in _BAD

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.row.state < FIRST_FINAL


class _Detail(NamedTuple):
    open_finished: bool
    """Show what a flow that ended well has called."""
    open_others: bool
    """Show what any other run below the outermost one has called; else it says how many."""
    merge_flows: bool
    """Treat flow runs like task runs: one line for all of one flow that completed, ..."""
    most: int
    """Lines for alike runs that go on, and for alike ones that failed."""


_DETAILS = (
    _Detail(open_finished=True, open_others=True, merge_flows=False, most=20),
    _Detail(open_finished=False, open_others=True, merge_flows=False, most=20),
    _Detail(open_finished=False, open_others=True, merge_flows=False, most=4),
    _Detail(open_finished=False, open_others=True, merge_flows=False, most=1),
    _Detail(open_finished=False, open_others=False, merge_flows=False, most=4),
    _Detail(open_finished=False, open_others=False, merge_flows=True, most=4),
    _Detail(open_finished=False, open_others=False, merge_flows=True, most=1),
)


def build_tree(rows: Sequence[RunRow]) -> Node | None:
    """The tree of `rows`, which are in the order the runs were created; None when there are none."""
    nodes: dict[bytes, Node] = {}
    stands_for: dict[bytes, bytes | None] = {}
    root: Node | None = None
    for row in rows:
        parent_id = row.parent_id
        if row.kind == STAND_IN:
            stands_for[row.id] = parent_id
            continue
        node = nodes[row.id] = Node(row)
        parent_id = stands_for.get(parent_id, parent_id) if parent_id is not None else None
        parent = nodes.get(parent_id) if parent_id is not None else None
        if parent is not None:
            parent.children.append(node)
        elif root is None:
            root = node
    for node in reversed(nodes.values()):  # children come after their parents
        for child in node.children:
            node.below += child.below + 1
            node.ended += child.ended + (not child.is_open)
            node.bad += child.bad + (child.row.state in _BAD)
    return root


def state_name(row: RunRow) -> str:
    """The name of a run's newest state."""
    return row.state_name or STATE_TYPES[row.state].value.title()


def counts(rows: Iterable[RunRow]) -> str:
    """`5 flow runs and 148 task runs: 150 Completed, 2 Running, 1 Failed; 4 retries`."""
    runs = [row for row in rows if row.kind != STAND_IN]
    flows = sum(row.kind == FLOW for row in runs)
    tasks = len(runs) - flows
    kinds = [_count(number, what) for number, what in ((flows, "flow run"), (tasks, "task run")) if number]
    states = Counter(state_name(row) for row in runs)
    retries = sum(max(row.run_count - 1, 0) for row in runs)
    return f"{' and '.join(kinds)}: {_listed(states)}" + (f"; {_count(retries, 'retry')}" if retries else "")


def _count(number: int, what: str) -> str:
    if number != 1:
        what = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{number:,} {what}"


def lay_out(root: Node, now: int, height: int) -> list[Line]:
    """The tree's lines, at most `height`, as of `now` (in microseconds, as rows have it)."""
    height = max(height, 2)
    lines: list[Line] = []
    for detail in _DETAILS:
        lines = [_line("", root, now), *_below(root, "", detail, now)]
        if len(lines) <= height:
            return lines
    left_out = len(lines) - height + 1
    return [*lines[: height - 1], Line("", StateType.PENDING, "", "", f"… {left_out:,} more lines")]


class _Entry(NamedTuple):
    """A line below some run, without its guide; with the run whose children follow, if they do."""

    line: Line
    opened: Node | None = None


def _below(node: Node, guide: str, detail: _Detail, now: int) -> Iterator[Line]:
    entries = [entry for group in _groups(node) for entry in _entries(group, detail, now)]
    for position, entry in enumerate(entries):
        is_last = position == len(entries) - 1
        yield entry.line._replace(guide=guide + ("└─ " if is_last else "├─ "))
        if entry.opened is not None:
            yield from _below(entry.opened, guide + ("   " if is_last else "│  "), detail, now)


def _groups(node: Node) -> Iterable[list[Node]]:
    """The runs a run called, by what was called, in the order of each one's first call."""
    groups: dict[tuple[int, str], list[Node]] = {}
    for child in node.children:
        groups.setdefault((child.row.kind, child.row.function), []).append(child)
    return groups.values()


def _entries(group: list[Node], detail: _Detail, now: int) -> Iterator[_Entry]:
    if group[0].row.kind == FLOW and not detail.merge_flows:
        for node in group:  # in the order they began: a flow keeps its place when it ends
            yield _entry(node, detail, now)
        return
    good = [node for node in group if node.row.state == _COMPLETED and not node.is_bad]
    cancelled = [node for node in group if node.row.state == _CANCELLED and not node.is_bad]
    yield from _merged(good, detail, now)
    bad = [node for node in group if node.is_bad]
    yield from _some(bad, detail, now)
    yield from _merged(cancelled, detail, now)
    yield from _some([node for node in group if node.is_open and not node.is_bad], detail, now)


def _merged(alike: list[Node], detail: _Detail, now: int) -> Iterator[_Entry]:
    """One line for all of them."""
    if len(alike) == 1:
        yield _entry(alike[0], detail, now)
    elif alike:
        rows = [node.row for node in alike]
        first = min(row.started or row.created for row in rows)
        last = max(row.ended or now for row in rows)
        retries = sum(max(row.run_count - 1, 0) for row in rows)
        notes = [duration_between(first, last), *([_count(retries, "retry")] if retries else [])]
        yield _Entry(_group_line(rows, ", ".join(notes)))


def _some(alike: list[Node], detail: _Detail, now: int) -> Iterator[_Entry]:
    """A line for each of the first few, and one for the rest."""
    shown = alike if len(alike) <= detail.most + 1 else alike[: detail.most]
    for node in shown:
        yield _entry(node, detail, now)
    rest = alike[len(shown) :]
    if rest:
        states = Counter(state_name(node.row) for node in rest)
        notes = [", ".join(states) if len(states) == 1 else _listed(states)]
        if failed := sum(node.bad for node in rest):
            notes.append(f"{failed:,} failed below")
        yield _Entry(_group_line([node.row for node in rest], "  ".join(notes)))


def _listed(states: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in states.most_common())


def _entry(node: Node, detail: _Detail, now: int) -> _Entry:
    line = _line("", node, now)
    if not node.children:
        return _Entry(line)
    ended_well = not node.is_open and not node.is_bad
    if detail.open_finished if ended_well and node.row.kind == FLOW else detail.open_others and not ended_well:
        return _Entry(line, node)
    told = f"{node.ended:,}/{node.below:,} ended" if node.is_open else _count(node.below, "run")
    failed = f", {node.bad:,} failed" if node.bad else ""
    return _Entry(line._replace(note=f"{line.note}  {told}{failed}"))


def _group_line(rows: Sequence[RunRow], note: str) -> Line:
    return Line("", STATE_TYPES[rows[0].state], f"{one_line(rows[0].function)} \u00d7 {len(rows):,}", "", note)


def _line(guide: str, node: Node, now: int) -> Line:
    row = node.row
    notes: list[str] = []
    if row.state != _COMPLETED or row.state_name is not None or (not guide and row.parent_id is None):
        notes.append(state_name(row))
    if row.started is not None:
        notes.append(duration_between(row.started, row.ended or now))
    if row.run_count > 1:
        notes.append(_count(row.run_count - 1, "retry"))
    if row.message and row.state != _COMPLETED:
        notes.append(one_line(row.message, _LONGEST_MESSAGE))
    name = row.name or (default_task_run_name(row.function, row.id) if row.state in _BAD else "")
    return Line(guide, STATE_TYPES[row.state], one_line(row.function), one_line(name, 60), "  ".join(notes))

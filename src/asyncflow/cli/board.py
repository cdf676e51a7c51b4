"""What `asyncflow serve` shows on a terminal: its deployments, the runs that go on, and the newest that have ended.

Pure: rows of runs come in, lines go out, and no more of them than there is room for. A line changes
when something has happened, not with every tenth of a second, so that it can be read while a
hundred runs a minute come and go.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest

from rich.text import Text

from asyncflow._rows import FIRST_FINAL, STATE_CODES, STATE_TYPES, RunRow
from asyncflow._rules import RESTING
from asyncflow.cli.live import state_style
from asyncflow.cli.output import clock_time, duration, one_line
from asyncflow.cli.tree import state_name
from asyncflow.states import StateType

__all__ = ["Board", "Served", "is_over"]

_MICRO = 1_000_000
_MOST_ENDED = 5
_MOST_COUNTED = 100
_COMPLETED = STATE_CODES[StateType.COMPLETED]
_BAD = frozenset({STATE_CODES[StateType.FAILED], STATE_CODES[StateType.CRASHED]})
_LONGEST_NAME, _LONGEST_WORDS, _LONGEST_MESSAGE = 40, 34, 200


def is_over(row: RunRow) -> bool:
    """Whether nothing of a run goes on in this process any more."""
    return row.state >= FIRST_FINAL or row.state_name in RESTING


@dataclass(slots=True)
class Served:
    """A deployment and what has become of its runs since the server began."""

    name: str
    """flow/name."""
    words: str
    """When it runs by itself."""
    next_slot: datetime | None = None
    is_paused: bool = False
    waiting: int = 0
    """Runs that are due or will be; a few at most are counted."""
    ended: Counter[str] = field(default_factory=Counter[str])


class Board:
    """Used by one thread at a time."""

    def __init__(self, served: dict[bytes, Served], title: str) -> None:
        self.served = served
        """By the ids of the deployments."""
        self.is_stopping = False
        """Whether no more runs begin."""
        self._title = title
        self._going: dict[bytes, RunRow] = {}
        self._ended: deque[RunRow] = deque(maxlen=_MOST_ENDED)

    def take(self, row: RunRow) -> None:
        """A run as it is now."""
        if not is_over(row):
            self._going[row.id] = row
            return
        self._going.pop(row.id, None)
        self._ended.appendleft(row)
        deployment = self.served.get(row.deployment_id or b"")
        if deployment is not None:
            word = "done" if row.state == _COMPLETED else "failed" if row.state in _BAD else "other"
            deployment.ended[word] += 1

    def lines(self, now: int, width: int, height: int) -> list[Text]:
        """All of it, as of `now` (in microseconds)."""
        table = self._table(has_words=True)
        if max(line.cell_len for line in table) > width:
            table = self._table(has_words=False)
        room = max(height - 2, 4)
        if len(table) > (most := max(room // 2, 2)):
            table = [*table[: most - 1], Text(f"… and {len(table) - most + 1} more deployments", "dim")]
        lines = [Text(self._title, "bold"), *table, Text()]
        left = room - len(lines)
        going = list(self._going.values())
        ended = list(self._ended)[: max(left - len(going), min(left // 3, _MOST_ENDED))]
        shown = going if len(going) <= left - len(ended) else going[: max(left - len(ended) - 1, 0)]
        lines += [self._run_line(row, now) for row in shown]
        if len(shown) < len(going):
            lines.append(Text(f"… and {len(going) - len(shown)} more that go on", "dim"))
        lines += [self._run_line(row, now) for row in ended]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return lines

    # --- deployments

    def _table(self, *, has_words: bool) -> list[Text]:
        titles = ["DEPLOYMENT", *(["SCHEDULE"] if has_words else []), "NEXT", "RUNNING", "WAITING", "DONE", "FAILED"]
        going = Counter(row.deployment_id for row in self._going.values())
        rows = [
            [
                Text(one_line(each.name, _LONGEST_NAME), "bold"),
                *([Text(one_line(each.words, _LONGEST_WORDS))] if has_words else []),
                Text("stopping", "yellow") if self.is_stopping else _next(each),
                _number(going[id_], "cyan"),
                _number(each.waiting, "yellow"),
                _number(each.ended["done"], "green"),
                _number(each.ended["failed"], "bold red"),
            ]
            for id_, each in self.served.items()
        ]
        return _aligned([[Text(title, "dim") for title in titles], *rows], numbers=4)

    # --- runs

    def _run_line(self, row: RunRow, now: int) -> Text:
        mark, style = state_style(STATE_TYPES[row.state])
        deployment = self.served.get(row.deployment_id or b"")
        name = row.function if deployment is None else deployment.name
        at = row.ended or row.started or row.created
        text = Text.assemble(
            (f"{mark} ", style),
            (f"{clock_time(at)[:8]}  ", "dim"),
            one_line(name, _LONGEST_NAME),
            (f"  {one_line(row.name or '', _LONGEST_NAME)}", "dim"),
            (f"  {one_line(state_name(row), _LONGEST_NAME)}", style),
        )
        if row.started is not None:
            end = row.ended or now
            # Of what goes on whole seconds: nothing is drawn anew between two of them.
            seconds = (end - row.started) / _MICRO
            text.append(f"  {duration(seconds) if row.ended else _whole(seconds)}", "dim")
        if row.message and row.state != _COMPLETED:
            text.append(f"  {one_line(row.message, _LONGEST_MESSAGE)}", style if row.state in _BAD else "dim")
        return text


def _next(served: Served) -> Text:
    if served.is_paused:
        return Text("paused", "yellow")
    if served.next_slot is None:
        return Text("when asked", "dim")
    slot, today = served.next_slot.astimezone(), datetime.now(UTC).astimezone().date()
    return Text(slot.strftime("%H:%M:%S" if slot.date() == today else "%a %d %b %H:%M"))


def _number(number: int, style: str) -> Text:
    text = str(number) if number <= _MOST_COUNTED or style != "yellow" else f">{_MOST_COUNTED}"
    return Text(text, style if number else "dim")


def _whole(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else f"{int(seconds)} s"


def _aligned(rows: Sequence[Sequence[Text]], numbers: int) -> list[Text]:
    """The rows as lines, with their cells below one another, the last `numbers` of them to the right."""
    widths = [max(cell.cell_len for cell in column) for column in zip_longest(*rows, fillvalue=Text(""))]
    lines: list[Text] = []
    for row in rows:
        line = Text()
        for place, cell in enumerate(row):
            pad = " " * (widths[place] - cell.cell_len)
            is_number = place >= len(row) - numbers
            line.append("  " if place else "").append(pad if is_number else "").append_text(cell)
            line.append("" if is_number else pad)
        lines.append(line)
    return lines

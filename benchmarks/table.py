"""From samples to a table of plain text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.registry import Row

__all__ = ["Line", "failed", "render", "summarize"]

_FACTORS = {"us": 1e6, "ms": 1e3}
_HEAD = ("what", "backend", "measured", "against", "ratio", "spread", "budget", "", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What is known about one row on one backend. Values are in the row's unit."""

    key: str
    title: str
    backend: str
    unit: str
    value: float | None = None
    reference_name: str | None = None
    reference: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    """The least and the greatest of what has the budget: the ratio, or the value."""
    budget: float | None = None
    note: str = ""
    error: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it costs more than its budget."""
        held = self.value if self.reference_name is None else self.ratio
        return held is not None and self.budget is not None and held > self.budget

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "is_over": self.is_over}


def summarize(row: Row, backend: str, samples: Sequence[dict[str, Any]]) -> Line:
    """The medians of a row's samples: the ratio's is the median of the ratios, not of its parts."""
    factor = _FACTORS.get(row.unit, 1)
    values = [sample["value"] * factor for sample in samples]
    bases = [sample["reference"] * factor for sample in samples if sample["reference"] is not None]
    ratios = [value / base for value, base in zip(values, bases, strict=False)]
    held = ratios or values
    return Line(
        key=row.key,
        title=row.title,
        backend=backend,
        unit=row.unit,
        value=statistics.median(values),
        reference_name=row.reference,
        reference=statistics.median(bases) if bases else None,
        ratio=statistics.median(ratios) if ratios else None,
        low=min(held),
        high=max(held),
        budget=row.budget(backend),
        note=samples[-1]["note"],
    )


def failed(row: Row, backend: str, error: str) -> Line:
    """A row that could not be measured."""
    return Line(key=row.key, title=row.title, backend=backend, unit=row.unit, error=error)


def render(lines: Iterable[Line]) -> str:
    """The table; a row over its budget ends in OVER."""
    cells = [_HEAD, *(_cells(line) for line in lines)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
    text: list[str] = []
    for number, row in enumerate(cells):
        text.append(
            "  ".join(
                cell.ljust(width) if column in (0, 1, 8) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
        )
        if number == 0:
            text.append("-" * len(text[0]))
    return "\n".join(text)


def _cells(line: Line) -> tuple[str, ...]:
    if line.error:
        return (line.title, line.backend, "-", "", "", "", "", "ERROR", line.error)
    is_ratio = line.reference_name is not None
    mark = "x" if is_ratio else f" {line.unit}"
    return (
        line.title,
        line.backend,
        f"{_number(line.value)} {line.unit}",
        f"{line.reference_name} {_number(line.reference)}" if is_ratio else "",
        f"{_number(line.ratio)}x" if is_ratio else "",
        f"{_number(line.low)}-{_number(line.high)}" if line.low != line.high else "",
        "" if line.budget is None else f"<= {line.budget:g}{mark}",
        "OVER" if line.is_over else "" if line.budget is None else "ok",
        line.note,
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if value else "0"

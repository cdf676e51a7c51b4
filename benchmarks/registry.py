"""Rows of the table: what is measured, against what, and what it may cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = ["LOOPS", "PROCESS", "Measure", "Row", "Sample", "Scale", "reference", "references", "row", "rows"]

LOOPS = ("asyncio", "uvloop", "trio")
PROCESS = ("process",)
"""The backend of rows that have no loop, or that start processes of their own."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to do."""

    quick: bool
    backend: str

    def of(self, full: int, quick: int) -> int:
        """One of the two sizes."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement in the row's unit (seconds for "us" and "ms"), with a remark."""

    value: float
    note: str = ""


Measure = Callable[[Scale], Awaitable[Sample] | Sample]
M = TypeVar("M", bound=Measure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    key: str
    title: str
    measure: Measure
    unit: str
    """What one sample is shown in: us or ms (measured in seconds), MB, B, Ir."""
    reference: str | None
    """What its ratio is taken to; without one the value itself has the budget."""
    budgets: Mapping[str, float] = field(default_factory=dict[str, float])
    """By backend; "*" is any other. A ratio, or a value in the row's unit."""
    backends: tuple[str, ...]
    repetitions: int
    optional: bool
    """Left out unless asked for by name: slow, or in need of another program."""

    def budget(self, backend: str) -> float | None:
        """The budget on one backend, if it has one."""
        return self.budgets.get(backend, self.budgets.get("*"))


rows: dict[str, Row] = {}
references: dict[str, Measure] = {}


def row(
    title: str,
    *,
    unit: str = "us",
    reference: str | None = None,
    budget: float | Mapping[str, float] | None = None,
    backends: tuple[str, ...] = LOOPS,
    repetitions: int = 7,
    optional: bool = False,
) -> Callable[[M], M]:
    """Put a measuring function into the table; its name is the row's key."""
    budgets = budget if isinstance(budget, Mapping) else {} if budget is None else {"*": budget}

    def add(measure: M) -> M:
        key = getattr(measure, "__name__", title)
        rows[key] = Row(
            key=key,
            title=title,
            measure=measure,
            unit=unit,
            reference=reference,
            budgets=budgets,
            backends=backends,
            repetitions=repetitions,
            optional=optional,
        )
        return measure

    return add


def reference(measure: M) -> M:
    """Something that rows are compared with; its name is what rows call it."""
    references[getattr(measure, "__name__", "")] = measure
    return measure

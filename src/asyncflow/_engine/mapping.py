"""`map`: one submitted run per item."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from types import AsyncGeneratorType
from typing import Any, TypeVar, cast

from asyncflow.exceptions import MapError
from asyncflow.futures import FutureList, RunFuture
from asyncflow.placeholders import AllowedFailure, Awaited, Unmapped
from asyncflow.retries import Seconds

__all__ = ["Start", "submit_each"]

T = TypeVar("T")
Start = Callable[[tuple[Any, ...], dict[str, Any]], RunFuture[T]]
"""Submits one run with these arguments."""


def submit_each(function: str, start: Start[T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> FutureList[T]:
    """Submit one run per item of the iterables among the arguments."""
    own: dict[str, Any] = {name: kwargs.pop(name) for name in ("wait_for", "run_key") if name in kwargs}
    given = _Arguments(function, args, kwargs)
    if given.is_async:
        return _AsyncFutureList(given, lambda args, kwargs: start(args, {**kwargs, **own}))
    return FutureList(start(args, {**kwargs, **own}) for args, kwargs in given.rows())


class _Arguments:
    """The arguments of one `map`, to be taken apart side by side."""

    def __init__(self, function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function = function
        self.is_taken: bool = False
        self.names: list[str] = [*(f"argument {place}" for place in range(1, len(args) + 1)), *kwargs]
        self.keywords: list[str] = list(kwargs)
        self.values: list[Any] = [*args, *kwargs.values()]
        for name, value in zip(self.names, self.values, strict=True):
            if isinstance(value, Awaited):
                raise MapError(
                    function,
                    f"{name} is a future, whose items are not there yet; write await future first, "
                    f"or unmapped(future) to give it to each run",
                )
        for place, value in enumerate(self.values):
            inside: Any = value.value if isinstance(value, AllowedFailure) else None
            if isinstance(inside, list | tuple):
                self.values[place] = [AllowedFailure(item) for item in cast("Iterable[Any]", inside)]
        self.mapped: list[int] = [place for place, value in enumerate(self.values) if _is_iterable(value)]
        self.is_async: bool = any(not isinstance(self.values[place], Iterable) for place in self.mapped)
        if not self.mapped:
            raise MapError(function, "none of the arguments can be iterated over; write submit(...) for a single run")

    def rows(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The arguments of each run. All of them are made before the first is given: a bad length submits nothing."""
        columns = {place: list(cast("Iterable[Any]", self.values[place])) for place in self.mapped}
        lengths = {place: len(column) for place, column in columns.items()}
        if len(set(lengths.values())) > 1:
            self.refuse_lengths(lengths)
        for items in zip(*columns.values(), strict=True):
            yield self.row(items)

    def refuse_lengths(self, lengths: dict[int, int]) -> None:
        """Raise: the iterables have different lengths."""
        listed = ", ".join(f"{self.names[place]} has {count}" for place, count in lengths.items())
        raise MapError(self.function, f"the lengths differ: {listed}; to give one value to each run, write unmapped(x)")

    def row(self, items: Iterable[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of one run, with one item of each iterable."""
        values = [each.value if isinstance(each, Unmapped) else each for each in self.values]
        for place, item in zip(self.mapped, items, strict=True):
            values[place] = item
        count = len(values) - len(self.keywords)
        return tuple(values[:count]), dict(zip(self.keywords, values[count:], strict=True))


def _is_iterable(value: Any) -> bool:
    if isinstance(value, str | bytes | bytearray | Unmapped | io.IOBase) or hasattr(value.__class__, "model_fields"):
        return False  # text, an open file and a pydantic model are one thing to most people
    return isinstance(value, Iterable | AsyncIterable)


class _AsyncFutureList(FutureList[T]):
    """What `map` over an async iterable gives: it is filled while it is awaited."""

    def __init__(self, given: _Arguments, start: Start[T]) -> None:
        super().__init__()
        self._given = given
        self._start = start
        self._missing: str | None = "write await {function}.map(...) before anything else is done with it"
        """What to do about it not being complete; None when it is."""

    def __iter__(self) -> Iterator[RunFuture[T]]:
        self._check_complete()
        return super().__iter__()

    def _block(self, timeout: Seconds | None, called: str, instead: str) -> None:
        self._check_complete()
        super()._block(timeout, called, instead)

    def _check_complete(self) -> None:
        if self._missing is not None:
            function = self._given.function
            problem = "an async iterable is taken apart while the list is awaited; "
            raise MapError(function, problem + self._missing.format(function=function))

    async def _values(self) -> list[T]:
        if self._missing is not None and not self._given.is_taken:
            await self._fill()
        return await super()._values()

    async def _fill(self) -> None:
        self._given.is_taken = True
        self._missing = "it is being awaited elsewhere, or that was interrupted, and there is no second time"
        sources = [_items_of(self._given.values[place]) for place in self._given.mapped]
        try:
            while (items := await _next_of_each(self._given, sources)) is not None:
                self.append(self._start(*self._given.row(items)))
            self._missing = None
        finally:
            for source in sources:
                await source.aclose()


async def _items_of(source: Any) -> AsyncGenerator[Any]:
    if not hasattr(source, "__aiter__"):
        for item in source:
            yield item
        return
    items = aiter(source)
    try:
        async for item in items:
            yield item
    finally:
        # What is the user's to use again (a channel, a file) stays open; a generator could only be collected.
        if items is not source or type(items) is AsyncGeneratorType:
            close: Any = getattr(cast("Any", items), "aclose", None)
            if close is not None:
                await close()


_END: Any = object()


async def _next_of_each(given: _Arguments, sources: list[AsyncGenerator[Any]]) -> list[Any] | None:
    items = [await anext(source, _END) for source in sources]
    ended = [item is _END for item in items]
    if all(ended):
        return None
    if any(ended):
        raise MapError(given.function, "the lengths differ; to give one value to each run, write unmapped(x)")
    return items

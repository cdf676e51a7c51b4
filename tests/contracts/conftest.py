"""The stores that every contract of `RunStore` is held by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncflow.abc import RunStore
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.stores.memory import MemoryStore
from asyncflow.stores.sqlite import SQLiteStore
from asyncflow.testing import FaultyStore


@pytest.fixture(params=["sqlite", "memory", "faulty"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], RunStore]]:
    """Opens stores that have nothing to do with one another."""
    opened: list[RunStore] = []

    def open_store() -> RunStore:
        home = tmp_path / f"store{len(opened)}"
        if request.param == "sqlite":
            opened.append(SQLiteStore(home, Settings(), FileResults(home)))
        else:
            opened.append(MemoryStore() if request.param == "memory" else FaultyStore(MemoryStore()))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], RunStore]) -> RunStore:
    return open_store()

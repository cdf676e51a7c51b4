"""Asking the processes on a home what their live runs wait for, by files in its folder `live`.

Who asks writes a request, whose name is new each time; each owner's upkeep finds it at its next turn
and writes an answer beside it, whole or not at all; who asked reads the answers and removes all of it.
What a process leaves behind that dies meanwhile is removed by the others' upkeep. Nothing of what runs
were given or gave is in these files: names, ids, and places in the code.

An owner is a process's open store, known by the number that the store gave it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from asyncflow._backend.base import open_no_link
from asyncflow._services import Services
from asyncflow._snapshots import await_tree_of
from asyncflow.ids import new_id

__all__ = ["Answer", "Request", "Responder", "say_off", "unsay_off"]

_ASKED = re.compile(r"([0-9a-f]{32})\.ask")
_LEFT = re.compile(r"[0-9a-f]{32}(\.[0-9]+)?\.(ask|answer)(\.new)?")
_FORGOTTEN = 60.0
"""Seconds after which nobody waits for an answer any more."""
_TORN = (ValueError, KeyError, TypeError)
"""What comes of reading a file that somebody else has written there."""


def _folder(home: Path) -> Path:
    return home / "live"


def _write(path: Path, data: bytes) -> None:
    """Write a file that nobody sees half of, for this user alone."""
    new = path.with_name(f"{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(new, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        new.rename(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def _read(path: Path) -> Any:
    with open(path, "rb", opener=open_no_link) as file:  # Path.open takes no opener
        return orjson.loads(file.read())


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  # names are all that is asked for
    except FileNotFoundError:  # nobody has ever asked
        return []


# --- asking ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What one owner says."""

    owner: int
    text: str
    """Its await tree as text, as it reads in that process."""
    tree: dict[str, Any]
    """The same as plain data."""

    @property
    def has_runs(self) -> bool:
        """Whether it tells of any run."""
        return bool(self.tree["runs"])


class Request:
    """One question, from the moment it is asked to `close`. Raises `OSError` where the home cannot be written."""

    def __init__(self, home: Path, run_id: bytes | None = None) -> None:
        self._folder = _folder(home)
        self._token = new_id().hex()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        _write(self._folder / f"{self._token}.ask", orjson.dumps({"run_id": None if run_id is None else run_id.hex()}))

    def answers(self) -> dict[int, Answer]:
        """The answers that are there, by owner."""
        found: dict[int, Answer] = {}
        for name in _names(self._folder):
            owner = name.removeprefix(f"{self._token}.").removesuffix(".answer")
            if owner.isdecimal() and name == f"{self._token}.{owner}.answer":
                with suppress(OSError, *_TORN):
                    data = _read(self._folder / name)
                    found[int(owner)] = Answer(int(owner), data["text"], data["tree"])
        return found

    def is_off(self, owner: int) -> bool:
        """Whether an owner has said that it answers nobody: its `upkeep_seconds` is 0."""
        return (self._folder / _off(owner)).exists()

    def close(self) -> None:
        """Ask no more, and leave nothing behind."""
        # The question first: an answer that is being written then is what upkeep removes.
        for name in sorted(_names(self._folder), key=lambda name: not name.endswith(".ask")):
            if name.startswith(self._token):
                with suppress(OSError):
                    (self._folder / name).unlink()


# --- answering -------------------------------------------------------------------------------


class Responder:
    """Answers for one owner, whenever it is called."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._folder = _folder(services.settings.home)

    def answer(self) -> bool:
        """Answer what is asked and was not answered yet. Blocks; costs one system call where nobody asks."""
        names = _names(self._folder)
        for name in names:
            asked = _ASKED.fullmatch(name)
            if asked is not None and (answer := f"{asked[1]}.{self._services.store.owner}.answer") not in names:
                with suppress(FileNotFoundError, *_TORN):  # whoever asked has left
                    self._answer(self._folder / name, self._folder / answer)
        return False

    def _answer(self, question: Path, answer: Path) -> None:
        run_id = _read(question)["run_id"]
        tree = await_tree_of([self._services], None if run_id is None else UUID(hex=run_id).bytes)
        _write(answer, orjson.dumps({"text": str(tree), "tree": tree}))

    def sweep(self) -> None:
        """Remove what processes that died have left."""
        for name in _names(self._folder):
            if _LEFT.fullmatch(name):
                with suppress(OSError):
                    path = self._folder / name
                    if time.time() - path.stat().st_mtime > _FORGOTTEN:
                        path.unlink()


# --- not answering ---------------------------------------------------------------------------


def _off(owner: int) -> str:
    return f"{owner}.off"


def say_off(home: Path, owner: int) -> None:
    """Let it be known that an owner answers nobody."""
    with suppress(OSError):
        _folder(home).mkdir(mode=0o700, exist_ok=True)
        _write(_folder(home) / _off(owner), b"upkeep_seconds=0\n")


def unsay_off(home: Path, owners: Iterable[int]) -> None:
    """Forget it: these owners are gone."""
    for owner in owners:
        with suppress(OSError):
            (_folder(home) / _off(owner)).unlink()

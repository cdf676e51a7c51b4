"""Exceptions as JSON records and as one line, whatever they are and however they are linked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import orjson

__all__ = ["encode_error", "error_summary"]

_class: Callable[[object], Any] = type  # what is asked of a class here is for any class
_OWN_FOLDER = str(Path(__file__).parent)


def error_summary(exc: BaseException) -> str:
    """`Type: text` in at most 1,000 characters; a group that holds one exception is named by that one."""
    leaves = [*islice(_leaves(exc), 2)]
    error = leaves[0] if len(leaves) == 1 else exc
    text = _message(error, 1000)
    return f"{type(error).__qualname__}: {text}"[:1000] if text else type(error).__qualname__[:1000]


def encode_error(exc: BaseException, *, limit: int = 64 * 1024) -> str:
    """`exc` as a JSON object of at most `limit` bytes (a few hundred more where that is too little).

    `type, module, message, traceback, notes`, then `cause` or `context` (the same again, nested),
    and for a group `exceptions`: its leaves at any depth, 100 at most. Tracebacks carry no locals
    and, so that they show the user's code, none of asyncflow's own frames.
    """
    root, told = _records(exc, most=min(120, limit // 512 + 1))
    room = limit
    while True:
        for record, texts in told:
            share = room // 2 if record is root else room // (2 * len(told))
            record.update({key: _cut(text, share) for key, text in texts.items()})
        text = orjson.dumps(root).decode()
        if len(text.encode()) <= limit or room < 64:
            return text
        room = room * 3 // 4


def _records(exc: BaseException, most: int) -> tuple[dict[str, Any], list[tuple[dict[str, Any], dict[str, str]]]]:
    """One record per exception that `exc` leads to, breadth first, linked; with the texts each is to tell.

    A work list and not recursion: groups nest thousands deep, and causes may form a ring.
    """
    root: dict[str, Any] = {}
    left: list[tuple[BaseException, dict[str, Any], int]] = [(exc, root, 0)]
    seen = {id(exc)}
    told: list[tuple[dict[str, Any], dict[str, str]]] = []
    for error, record, depth in left:
        record |= {"type": type(error).__qualname__[:200], "module": str(type(error).__module__)[:200]}
        told.append((record, {"message": _message(error), "traceback": _traceback(error), **_notes(error)}))
        for key, other in _linked(error) if depth < 10 else ():
            if id(other) in seen:
                continue
            if len(left) >= most or len(record.get(key, ())) >= 100:
                record["left_out"] = True
                break
            seen.add(id(other))
            left.append((other, {}, depth + 1))
            if key == "exceptions":
                record.setdefault(key, []).append(left[-1][1])
            else:
                record[key] = left[-1][1]
    return root, told


def _linked(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    if error.__cause__ is not None:
        yield "cause", error.__cause__
    elif error.__context__ is not None and not error.__suppress_context__:
        yield "context", error.__context__
    if issubclass(type(error), BaseExceptionGroup):
        yield from (("exceptions", leaf) for leaf in _leaves(error))


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    left = [exc]
    while left:
        error: Any = left.pop()
        if isinstance(error, BaseExceptionGroup):
            left.extend(reversed(cast("Any", error).exceptions))
        else:
            yield error


def _message(error: BaseException, limit: int = 32 * 1024) -> str:
    try:
        text = str.__str__(str(error))
    except Exception:  # noqa: BLE001  # an exception's `__str__` is anybody's code
        text = "<its __str__ raised>"
    return text[:limit].encode(errors="backslashreplace").decode()


def _notes(error: BaseException) -> dict[str, str]:
    notes: Any = getattr(error, "__notes__", None)
    return {"notes": "\n".join(each for each in notes[:20] if _class(each) is str)} if _class(notes) is list else {}


def _traceback(error: BaseException) -> str:
    import traceback

    try:
        stack = traceback.extract_tb(error.__traceback__, limit=-500)  # the innermost ones
        users = [frame for frame in stack if not frame.filename.startswith((_OWN_FOLDER, "<asyncflow "))]
        frames = "".join(traceback.format_list(users or stack))
    except Exception:  # noqa: BLE001  # source lines come from import hooks, which are anybody's code
        frames = ""
    return f"Traceback (most recent call last):\n{frames}{type(error).__qualname__}: {_message(error)}\n"


def _cut(text: str, room: int) -> str:
    """`text` in at most `room` characters, without its middle."""
    if len(text) <= room:
        return text
    return f"{text[: room // 2]}\n... {len(text) - room:,} characters left out ...\n{text[len(text) - room // 2 :]}"

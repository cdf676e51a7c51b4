"""The lines of `tasks.jsonl`: what each run below an outermost one came to, for people and other programs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

from asyncflow._rows import FLOW, STATE_CODES, STATE_TYPES, RunRow, storable
from asyncflow.states import StateType

__all__ = ["line", "text_id"]

_COMPLETED = STATE_CODES[StateType.COMPLETED]
_STATES = [type_.value for type_ in STATE_TYPES]


def line(row: RunRow) -> bytes:
    """The line of a run that has ended, with its line break; shorter where something in it cannot be told."""
    try:
        return _line_of(row)
    except (TypeError, ValueError):
        # Text that is not Unicode, or JSON that is none. The row has it; the line does without.
        bare = row._replace(result=None, result_file=None, error=None, details=None)
        return _line_of(RunRow._make(map(storable, bare)))


@lru_cache(1024)
def _beginning(kind: int, function: str) -> str:
    return f'","{"flow" if kind == FLOW else "task"}":{orjson.dumps(function).decode()},"state":"COMPLETED","result":'


def _one_line(result: str) -> str:
    # A line break in JSON is white space (in a text it is written \n), but here it ends the line.
    return result.replace("\n", " ") if "\n" in result else result


def _line_of(row: RunRow) -> bytes:
    result = row.result
    if result is not None and row.state == _COMPLETED and not (row.name or row.state_name or row.details):
        # Nearly every line is such a one: put together here it takes a third of the time.
        return f'{{"id":"{text_id(row.id)}{_beginning(row.kind, row.function)}{_one_line(result)}}}\n'.encode()
    told: dict[str, Any] = {"id": text_id(row.id), "flow" if row.kind == FLOW else "task": row.function}
    if row.name is not None:
        told["name"] = row.name
    told["state"] = _STATES[row.state]
    if row.state_name is not None:
        told["state_name"] = row.state_name
    if row.result_file is not None:
        told["result_file"] = orjson.Fragment(row.result_file)
    elif row.result is not None:
        told["result"] = orjson.Fragment(_one_line(row.result))
    elif row.error is not None:
        error = orjson.loads(row.error)
        told["error"] = {"type": error.get("type"), "message": error.get("message")}
    elif row.state != _COMPLETED and row.message is not None:
        told["message"] = row.message
    if row.details is not None and (reason := orjson.loads(row.details).get("not_kept")):
        told["not_kept"] = reason
    return orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)


def text_id(value: bytes) -> str:
    """An id as people write it."""
    # `str(UUID(...))` costs as much as the rest of a line.
    digits = value.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

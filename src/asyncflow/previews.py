"""Short words about values, for messages and for records of what is not JSON. Runs no code of the value."""

from __future__ import annotations

import reprlib
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, cast, get_args, get_origin

__all__ = ["HIDDEN", "PREVIEW_KEY", "hide", "is_preview", "names_secret", "preview", "type_name"]

_MASK = "**********"  # what pydantic writes in place of a secret
_class: Callable[[object], Any] = type  # what is asked of a class here is for any class


def type_name(value: object) -> str:
    """The class of `value` as `module.Name`, without running any code of it."""
    kind = _class(value)
    module = type.__dict__["__dict__"].__get__(kind).get("__module__", "builtins")
    name = type.__dict__["__qualname__"].__get__(kind)
    return name if module == "builtins" or type(module) is not str else f"{module}.{name}"


HIDDEN = f"'{_MASK}'"
"""In place of the preview of a text that is a secret."""
PREVIEW_KEY = "__preview__"
"""The only key of the object that is recorded in place of a value which is not JSON, or a secret."""


def is_preview(data: object) -> bool:
    """Whether recorded data stands for a value that was not recorded."""
    return isinstance(data, dict) and list(cast("dict[str, Any]", data)) == [PREVIEW_KEY]


def hide(parameters: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Recorded parameters with nothing but previews in place of some of them."""
    hidden = {name: {PREVIEW_KEY: HIDDEN} for name in names if parameters.get(name) is not None}
    return {**parameters, **{name: value for name, value in hidden.items() if not is_preview(parameters[name])}}


def names_secret(hint: Any) -> bool:
    """Whether a type is a secret's, or a union, a container or a pydantic model with one in it."""
    left, seen = [hint], list[Any]()
    while left:
        part = left.pop()
        if any(part is each for each in seen):
            continue
        seen.append(part)
        if hasattr(get_origin(part) or part, "get_secret_value"):
            return True
        left += get_args(part)
        left += [field.annotation for field in getattr(part, "__pydantic_fields__", {}).values()]
    return False


_SHORT_REPR = {"datetime", "decimal", "fractions", "pathlib", "pathlib._local", "uuid", "zoneinfo"}


def preview(value: object, limit: int = 200) -> str:
    """A short text for people, at most `limit` characters; never raises.

    Runs no `__repr__` but the standard library's: an object's own may raise, take gigabytes or
    tell a password. Secrets stay hidden, and so do fields declared with `repr=False`.
    """
    try:
        text = _Preview().repr(value).encode(errors="backslashreplace").decode()
    except Exception:  # noqa: BLE001  # a property or an iterator of the value raised
        text = f"<{type_name(value)}>"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class _Preview(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxstring, self.maxlong, self.fillvalue = 4, 6, 150, 60, "…"

    def repr1(self, x: Any, level: int) -> str:
        # By type and not, as the base class does, by the type's name, which anybody may use.
        return super().repr1(x, level) if type(x) in _BUILT_IN else self.repr_instance(x, level)

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() <= 1024 else f"<int of {x.bit_length():,} bits>"

    def repr_instance(self, x: Any, level: int) -> str:
        kind = _class(x)
        if hasattr(kind, "get_secret_value"):
            return f"{kind.__name__}('{_MASK}')"
        if issubclass(kind, Enum):
            return f"{kind.__name__}.{x.name}"
        if kind in (bool, float, complex, type(None), bytes, bytearray) or kind.__module__ in _SHORT_REPR:
            return repr(x[: self.maxstring] if kind in (bytes, bytearray) else x)
        declared = getattr(kind, "__dataclass_fields__", None) or getattr(kind, "__pydantic_fields__", None)
        if declared is None or level <= 0:
            return f"<{type_name(x)}>"
        told = [step for step, field in declared.items() if field.repr][: self.maxdict]
        return f"{kind.__name__}({', '.join(f'{step}={self._field(x, step, declared[step], level)}' for step in told)})"

    def _field(self, x: Any, step: str, field: Any, level: int) -> str:
        value = getattr(x, step)
        # A default that pydantic did not check may be a plain text where a secret is declared.
        is_bare = type(value) in _BARE and names_secret(getattr(field, "annotation", None))
        return HIDDEN if is_bare else self.repr1(value, level - 1)


_BARE = (str, bytes, int, dict, list, tuple, set, frozenset)
_BUILT_IN = (str, int, dict, list, tuple, set, frozenset, deque)

"""The types of inputs: JSON that came from somewhere to a value, and what is wrong with it where it is none.

pydantic is imported when a model is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from asyncflow._parameter_models import holds_secret, lenient_generator, without_secret_defaults, without_texts
from asyncflow.exceptions import OptionError
from asyncflow.previews import HIDDEN, preview
from asyncflow.serializers import decode

__all__ = ["NONE_GIVEN", "InputModel", "Problem", "input_model", "is_loaded", "misfits"]

Problem = tuple[str, str, str]
"""Path, what is wrong there, and a preview of the value."""
NONE_GIVEN: Problem = ("input", "It waits for one, and none was given", "nothing")
_WHOLE = "input"


class InputModel:
    """One type that inputs are to have: a pydantic model, a dataclass, `int`, `list[int]`, ..."""

    __slots__ = ("_adapter", "_is_secret", "schema")

    def __init__(self, option: str, type_: Any) -> None:
        """Raises `OptionError` when `type_`, given as `option`, is nothing that values can be checked against."""
        from pydantic import PydanticUserError, TypeAdapter

        try:
            adapter: Any = cast("Any", TypeAdapter)(type_)
            adapter.rebuild()
        except (PydanticUserError, NameError) as error:
            expected = f"a type that pydantic can check values against ({error})"
            raise OptionError(option, type_, expected) from error
        self._adapter = adapter
        self._is_secret = holds_secret(type_)
        written = adapter.json_schema(schema_generator=lenient_generator(), by_alias=False)
        if written != adapter.json_schema(schema_generator=lenient_generator()):
            written.pop("additionalProperties", None)  # a name that it does not know may be an alias
        self.schema: dict[str, Any] = without_secret_defaults(written) if self._is_secret else written
        """The JSON schema of such an input."""

    def read(self, text: str) -> tuple[Any, list[Problem]]:
        """The value of a JSON text, coerced as a flow's parameters are; or what is wrong with it."""
        from pydantic import ValidationError

        try:
            return self._adapter.validate_json(text, by_alias=True, by_name=True), []
        except ValidationError as error:
            return None, [self._problem(each) for each in error.errors(include_url=False, include_context=False)]

    def _problem(self, error: Any) -> Problem:
        path = ".".join(str(step) for step in error["loc"]) or _WHOLE
        if error["type"] == "missing":  # its input is all that was given beside it
            return path, error["msg"], "nothing"
        if not self._is_secret:
            return path, error["msg"], preview(error["input"])
        return path, without_texts(error["msg"], error["input"]), HIDDEN


def misfits(schema: Mapping[str, Any], text: str | None) -> list[Problem]:
    """What a JSON schema alone tells of an input, without checking values: missing names, and unknown ones.

    The process that waits for the input checks the rest, by its type.
    """
    needed: Sequence[str] = schema.get("required", ())
    if text is None:
        return [] if schema.get("type") == "object" and not needed else [NONE_GIVEN]
    given = decode(text)
    if schema.get("type") != "object":
        return []
    if not isinstance(given, dict):
        return [(_WHOLE, "Input should be an object", preview(given))]
    known: Mapping[str, Any] = schema.get("properties", {})
    names = cast("dict[str, Any]", given)
    unknown = [name for name in names if name not in known]
    if unknown and schema.get("additionalProperties") is not False:
        return []  # one of them may be the alias of one that is missing
    told = f"No such field (there are: {', '.join(known) or 'none'})"
    return [
        *((name, "Field required", "nothing") for name in needed if name not in names),
        *((name, told, preview(names[name])) for name in unknown),
    ]


@lru_cache(maxsize=256)
def _made(option: str, type_: Any, _spelling: str) -> InputModel:
    return InputModel(option, type_)


def input_model(option: str, type_: Any) -> InputModel:
    """The model of a type; made once for each."""
    try:
        return _made(option, type_, repr(type_))  # two unions that differ in order are equal, but are not read alike
    except TypeError:  # `Annotated` with something unhashable
        return InputModel(option, type_)


def is_loaded() -> bool:
    """Whether one was made before: for the first, pydantic is imported, and looks for its plugins on the disk."""
    return _made.cache_info().currsize > 0

"""The pydantic models behind the parameters of flows, and what of them is secret.

pydantic is imported when a model is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from inspect import Parameter
from types import NoneType
from typing import TYPE_CHECKING, Any, Unpack, cast, get_args, get_origin

from asyncflow.exceptions import NotJSONError
from asyncflow.previews import HIDDEN, names_secret, preview
from asyncflow.serializers import decode, encode

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = [
    "SECRET_FORMAT",
    "described",
    "field_name",
    "holds_secret",
    "lenient_generator",
    "make_model",
    "require_complete",
    "schema_class",
    "unresolved",
    "whole_hint",
    "without_secret_defaults",
    "without_texts",
]

SECRET_FORMAT = '"password"'  # the format of a secret in a JSON schema


def field_name(index: int) -> str:
    """The name of a parameter's field."""
    return f"p{index}"


def make_model(hints: Mapping[str, Any], names: Iterable[str]) -> type[BaseModel]:
    """A model with a field for each of the parameters `names`."""
    from pydantic import ConfigDict, Field, create_model

    # Numbered fields under aliases: a parameter may be called `schema`, `copy` or `model_config`.
    fields: dict[str, Any] = {
        field_name(index): (hints[name], Field(default=None, alias=name)) for index, name in enumerate(names)
    }
    return create_model("Parameters", __config__=ConfigDict(arbitrary_types_allowed=True), **fields)


def require_complete(model: type[BaseModel]) -> None:
    """Raise `NameError` when a hint in it could not be resolved."""
    if not model.__pydantic_complete__:
        raise NameError("a class in it refers to a name that is not defined")


@cache
def lenient_generator() -> Any:
    """What writes JSON schemas: of a type that they cannot describe, one that allows anything."""
    from pydantic.json_schema import GenerateJsonSchema

    class LenientGenerator(GenerateJsonSchema):
        def emit_warning(self, kind: Any, detail: str) -> None:
            return  # of a default that is not JSON, quoting it

        def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
            return {}

    return LenientGenerator


def described(about: dict[str, Any], parameter: Parameter, position: int, text: str | None) -> dict[str, Any]:
    """The JSON schema of one parameter: what pydantic says `about` it, and what it does not know."""
    # It has taken the title from its alias and the default from our placeholder.
    about = {key: value for key, value in about.items() if key not in ("title", "default")}
    about |= {"title": parameter.name, "position": position}
    if text is not None:
        about["description"] = text
    if parameter.default is not Parameter.empty:
        with suppress(NotJSONError):  # that there is a default is also said by not being required
            about["default"] = decode(encode(parameter.default))
    return about


def unresolved(parameter: Parameter, error: Exception) -> tuple[str, str, str]:
    """The problem of a hint that raised when it was looked at."""
    text = f"Its type hint cannot be resolved ({error}); define what it names at module level"
    return parameter.name, text, preview(parameter.annotation)


def whole_hint(hint: Any, parameter: Parameter) -> Any:
    """The type of the value that `Binder.bind` gives for a parameter with this hint."""
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return cast("Any", tuple)[Any if get_origin(hint) is Unpack else hint, ...]
    if parameter.kind is Parameter.VAR_KEYWORD:
        return get_args(hint)[0] if get_origin(hint) is Unpack else cast("Any", dict)[str, hint]
    return NoneType if hint is None else hint


@cache
def schema_class() -> Any:
    """The class of what `flow.parameters` is."""
    from pydantic import BaseModel

    class ParameterSchema(BaseModel):
        """The JSON schema of a flow's parameters."""

        title: str = "Parameters"
        type: str = "object"
        properties: dict[str, Any]
        required: list[str]
        definitions: dict[str, Any]

    return ParameterSchema


# --- secrets -------------------------------------------------------------------------------


def holds_secret(hint: Any) -> bool:
    """Whether a value of this type is a secret, or has one in it: `SecretStr`, a model with such a field, ..."""
    if names_secret(hint):
        return True
    try:  # what else says so, and has fields that are found in no such simple way
        written = make_model({"p": hint}, ["p"]).model_json_schema(schema_generator=lenient_generator())
    except Exception:  # noqa: BLE001  # a type that pydantic does not know is none of its secrets
        return False
    return SECRET_FORMAT in encode(written)


def without_texts(message: str, given: Any) -> str:
    """`message` without any text of a bad value: a validator may quote it."""
    left = [given]
    while left:
        part = left.pop()
        if isinstance(part, str | bytes) and part:
            message = message.replace(part if isinstance(part, str) else part.decode(errors="replace"), HIDDEN[1:-1])
        elif isinstance(part, dict):
            left += cast("Any", part).values()
        elif isinstance(part, list | tuple | set | frozenset):
            left += cast("Any", part)
    return message


def without_secret_defaults(schema: Any) -> Any:
    """A JSON schema of something secret, without defaults that may be: pydantic shows one that is a plain text."""
    if isinstance(schema, list):
        return [without_secret_defaults(part) for part in cast("Any", schema)]
    if not isinstance(schema, dict):
        return schema
    parts: dict[str, Any] = cast("Any", schema)
    about = encode({name: part for name, part in parts.items() if name not in ("properties", "$defs")})
    hidden = ("default", "examples") if SECRET_FORMAT in about or '"$ref"' in about else ()
    return {name: without_secret_defaults(part) for name, part in parts.items() if name not in hidden}

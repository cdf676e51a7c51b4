"""Parameters of flows: coerced by their type hints, described as JSON schema, recorded as JSON.

pydantic is imported when a hint or a value first needs it: a call whose values already are exactly
of their plain hints (`int`, `str`, ...) is checked without, which is most calls of most scripts.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, Union, Unpack, cast, get_args, get_origin

import orjson

from asyncflow._parameter_models import (
    described,
    field_name,
    holds_secret,
    lenient_generator,
    make_model,
    require_complete,
    schema_class,
    unresolved,
    whole_hint,
    without_secret_defaults,
    without_texts,
)
from asyncflow._signature import Binder, parameter_descriptions, resolve_hint
from asyncflow.exceptions import NotJSONError, ParametersTooLargeError, ParameterValidationError
from asyncflow.previews import HIDDEN, PREVIEW_KEY, is_preview, preview
from asyncflow.serializers import decode, encode

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["Binder", "ParameterModel", "encode_parameters"]

_EMPTY = inspect.Parameter.empty
_STARRED = inspect.Parameter.VAR_POSITIONAL
_DOUBLE_STARRED = inspect.Parameter.VAR_KEYWORD
_PLAIN = frozenset({int, str, float, bool, bytes, NoneType})

_OPEN: Any = (str, bytes, bytearray, list, tuple, set, frozenset, dict)
"""Of these a record holds what is in them, whatever their hint is."""

_NONE: frozenset[str] = frozenset()

_Problem = tuple[str, str, str]


class _Check(NamedTuple):
    """What makes pydantic unnecessary for one parameter: its values are exactly of one of `kinds`."""

    name: str
    default: Any
    kinds: frozenset[type]
    items: Callable[[Any], Iterable[Any]] | None
    """For `*args` and `**kwargs`: the values the hint speaks about."""


class ParameterModel:
    """The parameters of one flow as its type hints declare them; everything is built at first use.

    `namespace` holds names that the hints may use beside the function's globals and closure: the
    locals of whoever decorated it, where hints are strings.
    """

    __slots__ = ("_bare", "_binder", "_checks", "_flow", "_function", "_hints", "_model", "_namespace", "_secrets")

    def __init__(
        self, fn: Callable[..., Any], binder: Binder, *, flow: str, namespace: Mapping[str, Any] | None = None
    ) -> None:
        self._function = fn
        self._binder = binder
        self._flow = flow
        self._namespace = namespace or {}
        self._hints: dict[str, Any] | None = None
        self._checks: tuple[_Check, ...] | None = None
        self._model: Any = None
        self._secrets: dict[str, bool] = {}
        self._bare: list[tuple[str, Any]] | None = None
        """Secret parameters with a default that does not hide itself."""

    def validate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The values of `arguments` (from `Binder.bind`) coerced to the type hints, perhaps the same dict.

        Defaults are taken as they are. Containers with a hint are copied, objects of other classes
        keep their identity. Raises `ParameterValidationError` naming every bad field, or every
        hint that cannot be resolved; an exception from a validator of the user's that is neither
        ValueError nor AssertionError passes.
        """
        if self._fits(arguments):
            return arguments
        values, problems = self._coerced(arguments)
        if problems:
            raise ParameterValidationError(self._flow, problems)
        return values

    def needs_loading(self, arguments: Mapping[str, Any]) -> bool:
        """Whether `validate` would first have to import pydantic and build the model: tens of milliseconds."""
        return self._model is None and not self._fits(arguments)

    def load(self) -> None:
        """Do that. Bad hints are left for `validate` to tell."""
        with suppress(ParameterValidationError):
            self._pydantic_model()

    def _fits(self, arguments: Mapping[str, Any]) -> bool:
        """Whether every value is a default or exactly of its plain hint, so that there is nothing to coerce."""
        if self._checks is None:
            self._checks = tuple(self._make_checks())
        for name, default, kinds, items in self._checks:
            value = arguments[name]
            if value is default or (type(value) in kinds if items is None else _all_of(items(value), kinds)):
                continue
            return False
        return True

    def validate_keywords(
        self, given: Mapping[str, Any], *, coerce: bool = True, is_all: bool = True
    ) -> dict[str, Any]:
        """The same for values that come by name from outside (command line, HTTP, a deployment).

        `*args` is given as a list under its name; `**kwargs` takes every name that is not another parameter's, or
        a mapping under its own. Unknown and missing names are problems too; without `coerce` the only ones. Where
        these are not all, none is missing, and what is not given stays out.
        """
        arguments, problems = self._by_name(given, is_all=is_all)
        values, more = self._coerced(arguments) if coerce else (arguments, [])
        if problems or more:
            raise ParameterValidationError(self._flow, [*problems, *more])
        return values

    @property
    def takes_any(self) -> bool:
        """Whether any name may be given, as the flow has `**kwargs`."""
        return any(each.kind is _DOUBLE_STARRED for each in self._binder.parameters)

    def restore(self, recorded: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The arguments of a recorded run, typed by the hints, `given` in place of what was recorded.

        Also gives the names of those that cannot be had: they were not JSON, or are new and have no default.
        """
        texts: dict[str, Any] = decode(recorded)
        values: dict[str, Any] = {}
        missing: list[str] = []
        for parameter in self._binder.parameters:
            name = parameter.name
            if name in given:
                values[name] = given[name]
            elif name in texts and not is_preview(texts[name]):
                values[name] = _restored(encode(texts[name]), self.hints[name])
            elif name not in texts and parameter.default is not _EMPTY:
                values[name] = parameter.default
            else:
                missing.append(name)
        return values, missing

    @property
    def hints(self) -> dict[str, Any]:
        """The type of each value that `Binder.bind` gives, by name; `Any` where there is no hint.

        A hint that cannot be resolved raises `ParameterValidationError`.
        """
        if self._hints is None:
            hints: dict[str, Any] = {}
            problems: list[_Problem] = []
            for parameter in self._binder.parameters:
                try:
                    hint = resolve_hint(self._function, parameter, self._namespace)
                except Exception as error:  # noqa: BLE001  # a hint is an expression: it may raise anything
                    problems.append(unresolved(parameter, error))
                else:
                    hints[parameter.name] = whole_hint(hint, parameter)
            if problems:
                raise ParameterValidationError(self._flow, problems)
            self._hints = hints
        return self._hints

    def schema(self) -> BaseModel:
        """A pydantic model instance whose `model_dump()` is the JSON schema of the parameters.

        `title, type, properties, required, definitions`; a type that JSON schema cannot describe
        is `{}`, which allows anything. `self` and `cls` are left out.
        """
        written = self._pydantic_model().model_json_schema(
            ref_template="#/definitions/{model}", schema_generator=lenient_generator()
        )
        texts = parameter_descriptions(self._function)
        properties: dict[str, Any] = {}
        required: list[str] = []
        for position, parameter in enumerate(self._binder.parameters):
            if position == 0 and parameter.name in ("self", "cls"):
                continue
            about = written.get("properties", {}).get(parameter.name, {})
            properties[parameter.name] = described(about, parameter, position, texts.get(parameter.name))
            if self._is_secret(parameter.name):
                properties[parameter.name].pop("default", None)
            if parameter.default is _EMPTY and parameter.kind not in (_STARRED, _DOUBLE_STARRED):
                required.append(parameter.name)
        definitions = written.get("$defs", {})
        if self._has_secrets():
            definitions = without_secret_defaults(definitions)
        made: BaseModel = schema_class()(properties=properties, required=required, definitions=definitions)
        return made

    def _make_checks(self) -> Iterable[_Check]:
        for parameter in self._binder.parameters:
            hint = self.hints[parameter.name]
            items: Any = None
            if parameter.kind is _STARRED:
                hint, items = get_args(hint)[0], iter
            elif parameter.kind is _DOUBLE_STARRED:
                hint, items = (get_args(hint) or (None, Unpack))[1], cast("Any", dict).values
            if hint is not Any and hint is not object:
                kinds: tuple[Any, ...] = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
                exact = frozenset(kinds if all(map(_is_plain, kinds)) else ())
                yield _Check(parameter.name, parameter.default, exact, items)

    def _coerced(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[_Problem]]:
        from pydantic import ValidationError

        model = self._pydantic_model()
        defaults = {each.name: each.default for each in self._binder.parameters}
        given = {name: value for name, value in arguments.items() if value is not defaults[name]}
        try:
            made: Any = model.__pydantic_validator__.validate_python(given)
        except ValidationError as error:
            return {}, [self._problem(each) for each in error.errors(include_url=False, include_context=False)]
        fields = {each.name: field_name(index) for index, each in enumerate(self._binder.parameters)}
        return {name: getattr(made, fields[name]) if name in given else value for name, value in arguments.items()}, []

    def _problem(self, error: Any) -> _Problem:
        path = ".".join(str(step) for step in error["loc"])
        if error["type"] == "missing":  # its input is all that was given beside it
            return path, error["msg"], "nothing"
        if not self._is_secret(error["loc"][0]):
            return path, error["msg"], preview(error["input"])
        return path, without_texts(error["msg"], error["input"]), HIDDEN

    def secrets_in(self, arguments: Mapping[str, Any], *, checked: bool) -> frozenset[str]:
        """Names of the parameters that are secret by their hint alone: a record of their values would show them.

        Values that were `checked` have the hint's type, which hides them; but a default is taken as it is.
        """
        if "pydantic" not in sys.modules:  # then no hint is of its types
            return _NONE
        if not checked:
            try:
                names = [name for name, hint in self.hints.items() if not _is_plain(hint)]
            except ParameterValidationError:
                return frozenset(arguments)  # nobody can tell
            return frozenset(name for name in names if arguments[name] is not None and self._is_secret(name))
        if self._bare is None:
            parameters = [each for each in self._binder.parameters if isinstance(each.default, _OPEN) and each.default]
            self._bare = [(each.name, each.default) for each in parameters if self._is_secret(each.name)]
        return frozenset(name for name, text in self._bare if arguments[name] is text) if self._bare else _NONE

    def _is_secret(self, name: str) -> bool:
        # A bad value is not a SecretStr yet, so that only the hint tells that it was to be one.
        if name not in self._secrets:
            self._secrets[name] = not _is_plain(self.hints[name]) and holds_secret(self.hints[name])
        return self._secrets[name]

    def _has_secrets(self) -> bool:
        return any(self._is_secret(each.name) for each in self._binder.parameters)

    def _by_name(self, given: Mapping[str, Any], *, is_all: bool) -> tuple[dict[str, Any], list[_Problem]]:
        arguments: dict[str, Any] = {}
        problems: list[_Problem] = []
        rest = dict(given)

        def shown(value: object) -> str:  # under a name that was misspelled it may be what a secret one was to get
            return HIDDEN if self._has_secrets() else preview(value)

        for parameter in self._binder.parameters:
            name = parameter.name
            if parameter.kind is _DOUBLE_STARRED:
                own: dict[str, Any] = dict(rest.pop(name)) if isinstance(rest.get(name), Mapping) else {}
                twice = own.keys() & rest.keys()
                problems += [(f"{name}.{each}", "Given twice", shown(own[each])) for each in sorted(twice)]
                if own or rest or is_all:
                    arguments[name], rest = {**own, **rest}, {}
            elif name in rest:
                value: Any = rest.pop(name)
                as_tuple = parameter.kind is _STARRED and type(value) is list
                arguments[name] = (*value,) if as_tuple else value
            elif not is_all:
                continue
            elif parameter.kind is _STARRED:
                arguments[name] = ()
            elif parameter.default is not _EMPTY:
                arguments[name] = parameter.default
            else:
                problems.append((name, "Missing, and it has no default", "nothing"))
        known = ", ".join(each.name for each in self._binder.parameters) or "none"
        problems += [(str(name), f"No such parameter (there are: {known})", shown(rest[name])) for name in rest]
        return arguments, problems

    def _pydantic_model(self) -> type[BaseModel]:
        if self._model is None:
            self._model = self._build_model()
        return cast("type[BaseModel]", self._model)

    def _build_model(self) -> type[BaseModel]:
        names = [each.name for each in self._binder.parameters]
        hints = dict(self.hints)
        try:
            model = make_model(hints, names)
            if model.__pydantic_complete__:
                return model
        except Exception:  # noqa: BLE001  # pydantic does not say which field it was: each is tried below
            pass
        problems: list[_Problem] = []
        for parameter in self._binder.parameters:
            try:
                require_complete(make_model(hints, [parameter.name]))
            except NameError as error:
                problems.append(unresolved(parameter, error))
            except Exception:  # noqa: BLE001  # not a type that pydantic knows, so it can be anything
                hints[parameter.name] = Any
        if problems:
            raise ParameterValidationError(self._flow, problems)
        return make_model(hints, names)


def _restored(text: str, hint: Any) -> Any:
    try:
        return decode(text, hint)
    except ValueError:
        return decode(text)  # it was taken as it was given; the flow's own check has the last word


def _is_plain(hint: Any) -> bool:
    return any(hint is each for each in _PLAIN)  # and not `in`: a hint need not be hashable


def _all_of(values: Iterable[Any], kinds: frozenset[type]) -> bool:
    return all(type(value) in kinds for value in values)


# --- recording -----------------------------------------------------------------------------


def encode_parameters(
    arguments: Mapping[str, Any], *, flow: str, limit: int, hidden: frozenset[str] = frozenset()
) -> str:
    """The JSON object that records a run's parameters by name.

    A parameter with a part that is not JSON (an open client, a secret) is recorded as
    `{"__preview__": "<text>"}`, and so is a dict that only looks like that: whoever reads the
    record back can rely on the marker. Of those that are `hidden` the text says nothing. More than
    `limit` bytes (0 = no limit) raise `ParametersTooLargeError` with the biggest parameter.
    """
    if hidden:
        arguments = {name: _Hidden() if name in hidden else value for name, value in arguments.items()}
    try:
        text = encode(arguments, where="parameters")
        if PREVIEW_KEY in text:
            text = _encode_each(arguments)
    except NotJSONError:
        text = _encode_each(arguments)
    if limit and (size := _size(text)) > limit:
        sizes = {name: _size(_encode_one(value)) for name, value in arguments.items()}
        biggest = max(sizes, key=sizes.__getitem__)
        raise ParametersTooLargeError(flow, size=size, limit=limit, biggest=biggest, biggest_size=sizes[biggest])
    return text


def _encode_each(arguments: Mapping[str, Any]) -> str:
    return orjson.dumps({name: orjson.Fragment(_encode_one(value)) for name, value in arguments.items()}).decode()


class _Hidden:
    """In place of a secret that its type does not hide."""


def _encode_one(value: object) -> str:
    if type(value) is _Hidden:
        return encode({PREVIEW_KEY: HIDDEN})
    try:
        text = encode(value)
    except NotJSONError:
        return encode({PREVIEW_KEY: preview(value)})
    return encode({PREVIEW_KEY: preview(value)}) if text.startswith(f'{{"{PREVIEW_KEY}":') else text


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())

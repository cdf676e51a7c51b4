"""What a decorated function takes: binding its arguments, calling it, its type hints, its docstring.

`inspect.Signature.bind` costs two microseconds a call, more than the rest of a call together. A
`Binder` makes Python do it instead: it writes a function with the same parameters once, so that
binding has Python's speed, Python's rules and Python's error messages.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from asyncflow.exceptions import ReservedParameterError

__all__ = [
    "RESERVED",
    "Binder",
    "Hints",
    "innermost",
    "names_around",
    "parameter_descriptions",
    "parameter_names",
    "resolve_hint",
]

RESERVED = frozenset({"return_state", "run_key", "wait_for"})
"""Keywords that every call of a flow or task takes for itself."""

_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY
_NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD
_STARRED = inspect.Parameter.VAR_POSITIONAL
_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
_DOUBLE_STARRED = inspect.Parameter.VAR_KEYWORD


class Binder:
    """The parameters of one function, with its own `bind` and `call`.

    `bind(*args, **kwargs)` gives `{name: value}` in the order of the signature with defaults
    applied (the same default objects each time, as in Python), `*args` under its name as a tuple
    and `**kwargs` under its name as a dict. Arguments that do not match raise Python's `TypeError`
    with the function's name. `call(function, arguments)` calls with such a mapping.

    A callable that does not tell its signature (some builtins) takes anything, as `args` and
    `kwargs`. With `skip_first` the first parameter is left out: the `self` of a function that will
    be called as a bound method. A reserved parameter name raises `ReservedParameterError`.
    """

    __slots__ = ("bind", "call", "function", "is_positional", "name", "parameters")

    bind: Callable[..., dict[str, Any]]
    call: Callable[[Callable[..., Any], Mapping[str, Any]], Any]

    def __init__(
        self, fn: Callable[..., Any], *, name: str, kind: Literal["flow", "task"], skip_first: bool = False
    ) -> None:
        self.function: Callable[..., Any] = fn
        self.name: str = name
        self.parameters: tuple[inspect.Parameter, ...] = _parameters(fn)[1 if skip_first else 0 :]
        for parameter in self.parameters:
            if parameter.name in RESERVED:
                raise ReservedParameterError(kind, name, parameter.name)
        self.bind = _make_bind(self.parameters, str(getattr(fn, "__qualname__", name)))
        by_keyword = _only_takes_keywords(fn)
        self.call = _make_call(self.parameters, by_keyword=by_keyword)
        self.is_positional: bool = not by_keyword and all(
            each.kind in (_POSITIONAL_ONLY, _NAMED) for each in self.parameters
        )
        """Whether `function(*arguments.values())` is the same as `call`, with a frame less."""

    def __repr__(self) -> str:
        return f"<Binder of {self.name}({', '.join(each.name for each in self.parameters)})>"


def _parameters(fn: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    try:
        return tuple(inspect.signature(fn).parameters.values())
    except ValueError:
        return (inspect.Parameter("args", _STARRED), inspect.Parameter("kwargs", _DOUBLE_STARRED))


def parameter_names(fn: Callable[..., Any]) -> dict[str, None]:
    """The names of all its parameters, in order; of a function that will be a method, `self` too."""
    return dict.fromkeys(each.name for each in _parameters(fn))


def _only_takes_keywords(fn: Callable[..., Any]) -> bool:
    """Whether `fn` wraps what its signature shows in something of `(**kwargs)` alone."""
    if not hasattr(fn, "__wrapped__"):
        return False
    outer = inspect.signature(fn, follow_wrapped=False).parameters.values()
    return [each.kind for each in outer] == [_DOUBLE_STARRED]


def _make_bind(parameters: tuple[inspect.Parameter, ...], qualname: str) -> Any:
    # The body names parameters only, so that no parameter can hide something the body needs.
    names = ", ".join(f"{each.name!r}: {each.name}" for each in parameters)
    bind: Any = _define(f"def bind({_header(parameters)}): return {{{names}}}", "bind")
    given = [each for each in parameters if each.default is not inspect.Parameter.empty]
    bind.__defaults__ = tuple(each.default for each in given if each.kind is not _KEYWORD_ONLY) or None
    bind.__kwdefaults__ = {each.name: each.default for each in given if each.kind is _KEYWORD_ONLY} or None
    bind.__qualname__ = qualname  # what Python's messages about a bad call begin with
    return bind


def _header(parameters: tuple[inspect.Parameter, ...]) -> str:
    parts: list[str] = []
    previous: Any = None
    for each in parameters:
        if previous is _POSITIONAL_ONLY and each.kind is not _POSITIONAL_ONLY:
            parts.append("/")
        if each.kind is _KEYWORD_ONLY and previous not in (_STARRED, _KEYWORD_ONLY):
            parts.append("*")
        stars = "*" if each.kind is _STARRED else "**" if each.kind is _DOUBLE_STARRED else ""
        parts.append(f"{stars}{each.name}{'' if each.default is inspect.Parameter.empty else '=None'}")
        previous = each.kind
    return ", ".join([*parts, "/"] if previous is _POSITIONAL_ONLY else parts)


def _make_call(parameters: tuple[inspect.Parameter, ...], *, by_keyword: bool) -> Any:
    passed: list[str] = []
    for each in parameters:
        value = f"arguments[{each.name!r}]"
        if each.kind is _STARRED or each.kind is _DOUBLE_STARRED:
            passed.append(f"{'*' if each.kind is _STARRED else '**'}{value}")
        elif each.kind is _KEYWORD_ONLY or (by_keyword and each.kind is _NAMED):
            passed.append(f"{each.name}={value}")
        else:
            passed.append(value)
    return _define(f"def call(function, arguments): return function({', '.join(passed)})", "call")


@functools.lru_cache(maxsize=256)
def _compiled(source: str) -> Any:
    # The name in angle brackets lets stored tracebacks leave these frames out.
    return compile(source, "<asyncflow binder>", "exec")


def _define(source: str, name: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(_compiled(source), namespace)  # names of parameters only: `inspect` has checked them to be identifiers
    return namespace[name]


# --- type hints ----------------------------------------------------------------------------


def resolve_hint(fn: Callable[..., Any], parameter: inspect.Parameter, namespace: Mapping[str, Any]) -> Any:
    """The type hint of `parameter` with all names in it resolved; `Any` where there is none.

    Looks in the function's globals, its closure, its type parameters and then `namespace` (for
    classes local to the function that decorated it). Raises what the lookup raises, mostly
    `NameError`.
    """
    return _resolve(fn, parameter.annotation, namespace)


def _resolve(fn: Callable[..., Any], annotation: Any, namespace: Mapping[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    inner = innermost(fn)
    names = dict(namespace)
    names |= {each.__name__: each for each in getattr(inner, "__type_params__", ())}
    for name, cell in zip(getattr(inner, "__code__", _NO_CODE).co_freevars, inner.__closure__ or (), strict=False):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # assigned later than the function was called
            continue

    # One parameter at a time, so that a hint that cannot be resolved is known by its parameter.
    holder = SimpleNamespace(__annotations__={"it": annotation})
    return get_type_hints(holder, inner.__globals__, names, include_extras=True)["it"]


def innermost(fn: Any) -> Any:
    """The plain function whose signature `inspect` showed for `fn`."""
    while not inspect.isfunction(fn := inspect.unwrap(fn)):
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif inspect.ismethod(fn):
            fn = fn.__func__
        elif inspect.isclass(fn):
            fn = fn.__init__
        elif inspect.isfunction(type(fn).__call__):
            fn = type(fn).__call__
        else:
            return _no_function
    return fn


def _no_function() -> None:
    """Stands for a builtin, whose hints have no names to look up."""


_NO_CODE = _no_function.__code__


def names_around(fn: Callable[..., Any], caller: Mapping[str, Any]) -> dict[str, Any]:
    """The locals of the function that declares `fn`, as far as hints of `fn` that are text name them.

    `caller` are the globals of the module that asks: its own frames are passed over.
    """
    hints = getattr(innermost(getattr(fn, "__func__", fn)), "__annotations__", {}).values()
    wanted = set(re.findall(r"\w+", " ".join(each for each in hints if isinstance(each, str))))
    frame = inspect.currentframe() if wanted else None
    while frame is not None and (frame.f_globals is caller or frame.f_globals is globals()):
        frame = frame.f_back
    if frame is None or frame.f_locals is frame.f_globals:
        return {}
    # Those alone: a function lives on, and what else is in its neighbourhood must not live on with it.
    return {name: value for name, value in frame.f_locals.items() if name in wanted}


class Hints:
    """What the hints of one function say, each read when first asked for: many name what is defined below it.

    `marked` are the parameters whose hint carries `marker` (as `Annotated` does, also in a union),
    and those given by name. A hint that cannot be resolved is taken by its text.
    """

    __slots__ = ("_fn", "_given", "_marked", "_marker", "_namespace", "_returned")

    def __init__(
        self, fn: Callable[..., Any], namespace: Mapping[str, Any], *, marker: str, marked: frozenset[str]
    ) -> None:
        self._fn = fn
        self._namespace = namespace
        self._marker = marker
        self._given = marked
        self._marked: frozenset[str] | None = None
        self._returned: Any = _UNREAD

    @property
    def returned(self) -> Any:
        """The type of what a call gives in the end: for something to iterate over, the list of its items."""
        if self._returned is _UNREAD:
            self._returned = self._read_returned()
        return self._returned

    def _read_returned(self) -> Any:
        try:
            hint = _resolve(self._fn, inspect.signature(self._fn).return_annotation, self._namespace)
        except Exception:  # noqa: BLE001  # a hint is an expression: it may raise anything
            return Any
        if get_origin(hint) in _CONSUMED:
            return list[get_args(hint)[0]]  # type: ignore[misc]
        return hint

    @property
    def marked(self) -> frozenset[str]:
        """The names of the marked parameters."""
        if self._marked is None:
            found = (each.name for each in _parameters(self._fn) if self._is_marked(each))
            self._marked = self._given.union(found)
        return self._marked

    @property
    def first(self) -> str:
        """The name of its first parameter, of a method's function that of the object."""
        return next(iter(parameter_names(self._fn)), "self")

    def _is_marked(self, parameter: inspect.Parameter) -> bool:
        try:
            return _carries(resolve_hint(self._fn, parameter, self._namespace), self._marker)
        except Exception:  # noqa: BLE001  # as above
            return re.search(r"\bNoKey\[", str(parameter.annotation)) is not None


_UNREAD: Any = object()
_CONSUMED = (Generator, Iterator, Iterable, AsyncGenerator, AsyncIterator, AsyncIterable)


def _carries(hint: Any, marker: str) -> bool:
    if marker in getattr(hint, "__metadata__", ()):
        return True
    return get_origin(hint) in (Annotated, Union, UnionType) and any(_carries(each, marker) for each in get_args(hint))


# --- docstrings ----------------------------------------------------------------------------

_REST = re.compile(r"^[ \t]*:param\s+(?:[^:\n]*\s)?\*{0,2}(\w+):[ \t]*", re.MULTILINE)
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Params|Keyword Args|Other Parameters):?[ \t]*$")
_GOOGLE_ITEM = re.compile(r"^\*{0,2}(\w+)[ \t]*(?:\([^)\n]*\))?:[ \t]*(.*)$")
_NUMPY_ITEM = re.compile(r"^\*{0,2}(\w+(?:,[ \t]*\*{0,2}\w+)*)[ \t]*(?::.*)?$")


def parameter_descriptions(fn: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says about each parameter, in Google's, NumPy's or reST's style."""
    try:
        lines = (inspect.getdoc(fn) or "").splitlines()
    except Exception:  # noqa: BLE001  # `__doc__` may be a property of the callable
        return {}
    found = _rest_items(lines)
    for index, line in enumerate(lines):
        if _SECTION.match(line):
            numpy = lines[index + 1 : index + 2] and re.fullmatch(r"-{3,}\s*", lines[index + 1])
            found |= _items(lines[index + 2 :], _NUMPY_ITEM) if numpy else _items(lines[index + 1 :], _GOOGLE_ITEM)
    return {name: text for name, text in found.items() if text}


def _rest_items(lines: list[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in lines:
        if match := _REST.match(line):
            current = found[match[1]] = [line[match.end() :]]
        elif current is not None and line[:1].isspace() and line.strip() and not line.lstrip().startswith(":"):
            current.append(line.strip())
        else:
            current = None
    return {name: " ".join(parts).strip() for name, parts in found.items()}


def _items(lines: list[str], item: re.Pattern[str]) -> dict[str, str]:
    """The items of one section: each begins at the section's own depth, and its text is deeper."""
    found: dict[str, list[str]] = {}
    current: list[list[str]] = []
    depth = _indent(next((line for line in lines if line.strip()), ""))
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        if _indent(line) > depth:
            for texts in current:
                texts.append(line.strip())
            continue
        underlined = index + 1 < len(lines) and re.fullmatch(r"\s*-{3,}\s*", lines[index + 1])
        match = item.match(line.strip())
        if _indent(line) < depth or underlined or match is None:
            break
        first = match[2] if item is _GOOGLE_ITEM else ""
        current = [found.setdefault(name.strip(" *"), [first]) for name in match[1].split(",")]
    return {name: " ".join(filter(None, parts)).strip() for name, parts in found.items()}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())

"""Entrypoints: from `FILE.py:flow` or `package.module:flow` to the flow."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from asyncflow._entrypoints import LOADED_FILE
from asyncflow._specs import Spec
from asyncflow.deployments import Deployment
from asyncflow.exceptions import AsyncflowError, EntrypointError
from asyncflow.flows import Flow
from asyncflow.tasks import Task

__all__ = ["LoadError", "load_flow", "load_served", "spec_of", "stem_of"]


class LoadError(AsyncflowError):
    """The user's file or module raised while it was imported."""

    def __init__(self, entrypoint: str, error: BaseException, place: Path | None) -> None:
        self.entrypoint = entrypoint
        text = "".join(traceback.format_exception(type(error), error, _from_users_code(error, place))).rstrip()
        super().__init__(f"{entrypoint!r} could not be imported:\n{text}")


def load_flow(entrypoint: str) -> Flow[..., Any]:
    """The flow an entrypoint names. Imports its file or module.

    Raises `EntrypointError` when there is no such file, module or flow, and `LoadError` when the
    import raised.
    """
    target, name, module = _imported(entrypoint)
    return _choose(entrypoint, target, module, name)


def load_served(entrypoint: str) -> Flow[..., Any] | list[Deployment]:
    """What `asyncflow serve` is to serve: a flow, or the deployments that a file or module makes.

    Without a name those that stand in it; where there are none, its flow. Raises as `load_flow` does.
    """
    target, name, module = _imported(entrypoint)
    made = _deployments_of(module)
    if name is None:
        return made or _choose(entrypoint, target, module, name)
    found: Any = getattr(module, name, None)
    if isinstance(found, Deployment):
        return [found]
    return _choose(entrypoint, target, module, name)


def _deployments_of(module: ModuleType) -> list[Deployment]:
    """The deployments among the module's names, also in its lists and tuples, each once."""
    found: list[Deployment] = []
    for value in vars(module).values():
        several = cast("Iterable[object]", value) if isinstance(value, list | tuple) else (value,)
        for each in several:
            if isinstance(each, Deployment) and not any(each is other for other in found):
                found.append(each)
    return found


def _imported(entrypoint: str) -> tuple[str, str | None, ModuleType]:
    """The file or module of an entrypoint, the name in it, and the module it is now."""
    target, name = _split(entrypoint)
    if not target:
        raise EntrypointError(entrypoint, "write it as path/to/file.py:flow or package.module:flow")
    path = Path(target)
    if path.suffix == ".py" or len(path.parts) > 1 or path.is_dir():
        return target, name, _import_file(entrypoint, path)
    return target, name, _import_module(entrypoint, target)


def stem_of(entrypoint: str) -> str:
    """What the file or module is called: of several flows in it, the one of that name is what it is about."""
    target, _ = _split(entrypoint)
    return Path(target).stem if target.endswith(".py") else target.rpartition(".")[2]


def spec_of(flow: Flow[..., Any]) -> Spec:
    """What the engine knows about a flow: its colour, its options."""
    return flow._spec  # pyright: ignore[reportPrivateUsage]  # nothing that users need


def _split(entrypoint: str) -> tuple[str, str | None]:
    target, colon, name = entrypoint.rpartition(":")
    return (target, name) if colon else (entrypoint, None)


# --- importing -------------------------------------------------------------------------------


def _import_file(entrypoint: str, path: Path) -> ModuleType:
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise EntrypointError(entrypoint, f"{what}; name a Python file: path/to/file.py:flow")
    path = path.resolve()
    _search_first(path.parent)
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise EntrypointError(entrypoint, f"{path.name!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise LoadError(entrypoint, error, path) from error
    return module


def _import_module(entrypoint: str, name: str) -> ModuleType:
    _search_first(Path.cwd())
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            problem = (
                f"there is no module {missing!r} here or among the installed packages; a file is named with its .py"
            )
            raise EntrypointError(entrypoint, problem) from None
        if not all(name.split(".")):
            raise EntrypointError(entrypoint, f"{name!r} is not the name of a module") from None
        raise LoadError(entrypoint, error, None) from error


def _search_first(folder: Path) -> None:
    """Let the user's code import what lies beside it, as `python FILE` and `python -m` do."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _module_name(path: Path) -> str:
    # The file's own name, so that keys of tasks stay the same wherever it is run from, and
    # `import weather` in a file beside it gives this module and not a second one.
    name = path.stem
    if not name.isidentifier() or name in sys.modules or name in sys.stdlib_module_names:
        return f"{LOADED_FILE}{name}"
    return name


def _from_users_code(error: BaseException, place: Path | None) -> Any:
    """The traceback from the first frame in the user's code; of a syntax error there is none."""
    frames = error.__traceback__
    while frames is not None:
        file = frames.tb_frame.f_code.co_filename
        ours = file == __file__ or file.startswith("<frozen importlib") or Path(file).parent.name == "importlib"
        if file == str(place) or (place is None and not ours):
            return frames
        frames = frames.tb_next
    return None


# --- choosing --------------------------------------------------------------------------------


def _choose(entrypoint: str, target: str, module: ModuleType, name: str | None) -> Flow[..., Any]:
    flows = _flows_of(module)
    listed = [f"{target}:{each}" for each in flows]
    if name is None:
        main = next(iter(flows)) if len(flows) == 1 else stem_of(target)
        if main in flows:
            return flows[main]
        problem = "it has several flows, name one of them:" if flows else "it has no flow; declare one with @flow"
        raise EntrypointError(entrypoint, problem, flows=listed)
    found: Any = getattr(module, name, None)
    if isinstance(found, Flow):
        return cast("Flow[..., Any]", found)
    named = [each for each in flows.values() if each.name == name]
    if len(named) == 1:
        return named[0]
    problem = f"it has no flow named {name!r}" if found is None else f"{name!r} is {_what(found)}, not a flow"
    raise EntrypointError(
        entrypoint, f"{problem}; {'its flows are:' if flows else 'declare one with @flow'}", flows=listed
    )


def _flows_of(module: ModuleType) -> dict[str, Flow[..., Any]]:
    """The module's flows by name: its own, or, when it has none, those it imports."""
    flows: dict[str, Flow[..., Any]] = {}
    for name, value in vars(module).items():
        if isinstance(value, Flow) and not any(value is other for other in flows.values()):
            flows[name] = value
    own = {name: each for name, each in flows.items() if getattr(each.fn, "__module__", None) == module.__name__}
    return own or flows


def _what(value: object) -> str:
    if isinstance(value, Task):
        return "a task (a flow can call it)"
    if isinstance(value, type):
        return "a class"
    return "a plain function (decorate it with @flow)" if callable(value) else f"of type {type(value).__name__!r}"

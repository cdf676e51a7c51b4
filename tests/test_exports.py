"""The public door: what `import asyncflow` offers, that it is documented, and that the wheel carries it.

A name without an underscore in a module without one is public, and stands in that module's `__all__`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import asyncflow

PROJECT = Path(__file__).parent.parent

# What users of the field look for first; DESIGN section 3 has the whole list, later parts bring the rest.
PROMISED = {
    "Flow",
    "Runtime",
    "State",
    "StateType",
    "Task",
    "detached",
    "flow",
    "get_client",
    "get_run_logger",
    "runtime",
    "tags",
    "task",
}
PROMISED_IN = {
    "asyncflow.states": {
        "Cancelled",
        "Completed",
        "Crashed",
        "Failed",
        "Paused",
        "Pending",
        "Running",
        "Scheduled",
        "State",
        "StateType",
    },
    "asyncflow.runtime": {"flow_run", "task_run", "Runtime"},
    "asyncflow.exceptions": {
        "AsyncflowError",
        "DurabilityError",
        "FailedRunError",
        "ParameterValidationError",
        "RunCancelledError",
        "RunEndedError",
        "RunNotFoundError",
        "SyncCallOnEventLoopError",
    },
}


def all_modules() -> Iterator[str]:
    yield "asyncflow"
    for each in pkgutil.walk_packages(asyncflow.__path__, "asyncflow."):
        if each.name != "asyncflow.__main__":  # runs the command line
            yield each.name


MODULES = sorted(all_modules())
# The public face of `asyncflow.cli` is the command.
PUBLIC = [name for name in MODULES if "._" not in name and not name.startswith("asyncflow.cli.")]


def public_names(module: ModuleType) -> set[str]:
    """What `module` itself defines under a public name; for the package, what it binds."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name != "annotations"
        and (getattr(value, "__module__", None) == module.__name__ and not isinstance(value, ModuleType))
    }


def test_the_package_exports_what_it_binds() -> None:
    bound = {
        name
        for name, value in vars(asyncflow).items()
        if not name.startswith("_") and name != "annotations" and not isinstance(value, ModuleType)
    }
    modules = {name for name in asyncflow.__all__ if isinstance(getattr(asyncflow, name), ModuleType)}
    assert set(asyncflow.__all__) == bound | modules | {"__version__"}
    assert modules == {"await_tree", "cache_policies", "exceptions", "runtime", "states"}
    assert sorted(asyncflow.__all__, key=lambda name: (not name.isupper(), name)) == asyncflow.__all__  # as ruff does


def test_what_was_promised_is_there() -> None:
    assert set(asyncflow.__all__) >= PROMISED
    for module, names in PROMISED_IN.items():
        assert set(importlib.import_module(module).__all__) >= names


@pytest.mark.parametrize("name", MODULES)
def test_all_names_what_a_module_defines(name: str) -> None:
    module = importlib.import_module(name)
    exported: list[str] = list(getattr(module, "__all__", ()))
    assert len(set(exported)) == len(exported)
    missing = [each for each in exported if not hasattr(module, each)]
    assert not missing, f"{name}.__all__ names what is not there"
    if name in PUBLIC:
        functions_and_classes = {
            each
            for each in public_names(module)
            if inspect.isfunction(vars(module)[each]) or inspect.isclass(vars(module)[each])
        }
        assert functions_and_classes <= set(exported), f"{name} defines public names that its __all__ leaves out"


def documented_things() -> Iterator[tuple[str, Any]]:
    for name in PUBLIC:
        module = importlib.import_module(name)
        yield name, module
        for each in getattr(module, "__all__", ()):
            value = getattr(module, each)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{value.__module__}.{value.__qualname__}", value


THINGS = dict(documented_things())


@pytest.mark.parametrize("name", THINGS)
def test_public_things_are_documented(name: str) -> None:
    thing = THINGS[name]
    assert own_doc(thing), f"{name} has no docstring"
    if inspect.isclass(thing):
        silent = [each for each in public_methods(thing) if not inherited_doc(thing, each)]
        assert not silent, f"without a docstring: {name}.{{{', '.join(silent)}}}"


def own_doc(thing: Any) -> str | None:
    doc: str | None = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    made_up = inspect.isclass(thing) and (doc or "").startswith(f"{thing.__name__}(")  # by dataclass or NamedTuple
    return None if made_up else doc


def public_methods(cls: type) -> list[str]:
    return [
        name
        for name, value in vars(cls).items()
        if not name.startswith("_") and isinstance(value, staticmethod | classmethod | property | type(public_names))
    ]


def inherited_doc(cls: type, name: str) -> str | None:
    """A method's docstring: an adapter's may stand in its port, `abc`."""
    for base in cls.__mro__:
        doc: str | None = getattr(vars(base).get(name), "__doc__", None)
        if doc:
            return doc
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def test_the_wheel_has_every_module_and_the_type_marker(wheel: zipfile.ZipFile) -> None:
    source = PROJECT / "src"
    wanted = {path.relative_to(source).as_posix() for path in source.rglob("*.py")} | {"asyncflow/py.typed"}
    shipped = set(wheel.namelist())
    assert wanted <= shipped
    others = {name for name in shipped - wanted if ".dist-info/" not in name}
    assert not others, "the wheel carries more than the package"


def test_the_wheel_names_its_licence_and_its_command(wheel: zipfile.ZipFile) -> None:
    info = f"asyncflow-{asyncflow.__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "asyncflow = asyncflow.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"Version: {asyncflow.__version__}\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata

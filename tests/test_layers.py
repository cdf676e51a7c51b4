"""The shape of the package: layers, cycles, sizes, and who may name an event loop's package.

Read from the source, so that imports inside functions and under TYPE_CHECKING count as well: a knot
tied by those is as hard to take apart as any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"

# Lowest first. An entry is a module below asyncflow, or a package and everything in it.
LAYERS: dict[str, list[str]] = {
    "values": [
        "_version",
        "exceptions",
        "states",
        "ids",
        "retries",
        "_settings_sources",
        "settings",
        "clock",
        "_names",
        "_facts",
        "_rows",
        "_deployment_rows",
        "_journal",
        "_queries",
        "runs",
        "serializers",
        "codecs",
        "error_records",
        "previews",
        "_digest_forms",
        "digests",
        "cache_policies",
        "_entrypoints",
        "_signature",
        "_parameter_models",
        "_input_models",
        "parameters",
        "_options",
        "_specs",
        "placeholders",
        "task_runners",
        "_waits",
        "_wait_cycles",
        "_schedules",
        "schedules",
        "_triggers",
        "triggers",
        "_given",
        "_rule_rows",
        "deployment_records",
    ],
    "core": ["_rules", "_retention"],
    "ports": ["_deployment_port", "_exchange_port", "abc"],
    "adapters": ["stores", "results", "_backend"],
    "live": [
        "_key_locks",
        "_gates",
        "_alarm",
        "_limiter",
        "_rates",
        "_limits",
        "_places",
        "_causes",
        "_moved",
        "_past",
        "_spans",
        "_services",
        "_recorded",
        "_run",
        "context",
    ],
    "services": [
        "_cancellation",
        "_outcomes",
        "_operation",
        "run_logger",
        "logs",
        "_otel",
        "_unseen",
        "futures",
        "completions",
        "_live_tree",
        "_live_waits",
        "_snapshots",
        "_watchdog",
    ],
    "engine": ["_engine"],
    "composition": [
        "_deployments",
        "_control",
        "_live_requests",
        "_upkeep",
        "_shutdown",
        "runtime",
        "await_tree",
        "_log_following",
        "item_streams",
        "events",
        "_event_rows",
        "_event_pages",
        "_subscriptions",
        "client",
        "doctor",
        "concurrency",
        "control",
        "pauses",
        "inputs",
        "_transactions",
        "transactions",
    ],
    "operations": ["deployments", "_serving", "serving", "_run_deployment"],
    "definitions": ["declarations", "flows", "tasks"],
    # "" is asyncflow/__init__.py
    "edges": ["disconnects", "hosting", "sse", "cli", "__main__", "testing", "_asyncflow_pytest", ""],
}
RANKS = {entry: rank for rank, entries in enumerate(LAYERS.values()) for entry in entries}
NAMES = list(LAYERS)

# Packages that only modules of asyncflow._backend may name.
LOOPS = {"asyncio", "trio", "uvloop", "sniffio"}
LONGEST_MODULE = 400
LONGEST_FUNCTION = 60
JUNK_DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "base_utils"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in FILES.items()}
EACH_MODULE = pytest.mark.parametrize("name", TREES)


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the full name of everything imported, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "ruff bans relative imports: this test could not read them"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def own_imports(name: str) -> Iterator[tuple[int, str]]:
    """The line and the name of every module of asyncflow that `name` imports."""
    for line, full_name in imported_names(TREES[name]):
        target = full_name
        while target and target not in TREES:  # the last part may be a name in the module
            target = target.rpartition(".")[0]
        # A module's import runs the packages around it first; those around both are running already.
        while target and target != name and not name.startswith(f"{target}."):
            yield line, target
            target = target.rpartition(".")[0]
            if target == "asyncflow":  # around everything
                break
        if full_name == "asyncflow" or (target == "asyncflow" and full_name.count(".") == 1 and full_name not in TREES):
            yield line, "asyncflow"  # something of the package's door itself


def entry_of(name: str) -> str:
    return name.removeprefix("asyncflow").lstrip(".").partition(".")[0]


def rank_of(name: str) -> int:
    if entry_of(name) not in RANKS:
        pytest.fail(f"{name} is in no layer: give it one in LAYERS", pytrace=False)
    return RANKS[entry_of(name)]


def test_the_reader_sees_every_kind_of_import() -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from asyncflow.flows import Flow\n"
        "def f():\n    import asyncflow.client\n    from asyncflow import tasks\n"
    )
    assert [name for _, name in imported_names(tree)] == [
        "typing.TYPE_CHECKING",
        "asyncflow.flows.Flow",
        "asyncflow.client",
        "asyncflow.tasks",
    ]
    # What the package is known to do, so that a reader that finds nothing cannot pass the rest.
    assert "asyncflow._rules" in {target for _, target in own_imports("asyncflow._recorded")}
    assert {target for _, target in own_imports("asyncflow.stores.sqlite")} >= {
        "asyncflow.stores._queries",
        "asyncflow.stores._writer",
    }


def test_every_layer_entry_is_a_module() -> None:
    planned = {"testing"}
    assert RANKS.keys() - {entry_of(name) for name in TREES} <= planned


@EACH_MODULE
def test_every_module_has_a_layer(name: str) -> None:
    assert rank_of(name) >= 0


@EACH_MODULE
def test_imports_only_from_its_own_and_lower_layers(name: str) -> None:
    rank = rank_of(name)
    upward = [
        f"{FILES[name]}:{line}: {name} ({NAMES[rank]}) imports {target} ({NAMES[rank_of(target)]})"
        for line, target in own_imports(name)
        if rank_of(target) > rank
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize("name", [name for name in TREES if entry_of(name) in LAYERS["adapters"]])
def test_adapters_do_not_know_one_another(name: str) -> None:
    adapters = set(LAYERS["adapters"]) - {entry_of(name)}
    sideways = [
        f"{FILES[name]}:{line}: {name} imports {target}"
        for line, target in own_imports(name)
        if entry_of(target) in adapters
    ]
    assert not sideways, "\n".join(sideways)


def test_no_cycle() -> None:
    graph = {name: {target for _, target in own_imports(name)} for name in TREES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}", pytrace=False)


@EACH_MODULE
def test_only_the_backend_names_a_loop(name: str) -> None:
    if entry_of(name) == "_backend":
        return
    found = [
        f"{FILES[name]}:{line}: {full_name}"
        for line, full_name in imported_names(TREES[name])
        if full_name.partition(".")[0] in LOOPS or full_name.startswith(("anyio._backends", "anyio._core"))
    ]
    found += [f"{FILES[name]}:{line}: {text}" for line, text in loops_looked_up(TREES[name])]
    assert not found, "\n".join(found)


def loops_looked_up(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Loops' packages got without an import statement: `sys.modules["trio"]`, `import_module("asyncio")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript | ast.Call | ast.Compare):
            text = ast.unparse(node)
            if any(way in text for way in ("sys.modules", "import_module", "__import__", "find_spec")) and any(
                isinstance(part, ast.Constant) and str(part.value).partition(".")[0] in LOOPS for part in ast.walk(node)
            ):
                yield node.lineno, text


@pytest.mark.parametrize(
    "code",
    [
        'sys.modules["trio"]',
        'sys.modules.get("asyncio")',
        '"trio" in sys.modules',
        'importlib.import_module("trio.abc")',
    ],
)
def test_a_lookup_without_an_import_statement_is_seen(code: str) -> None:
    assert list(loops_looked_up(ast.parse(code)))


@EACH_MODULE
def test_no_junk_drawer(name: str) -> None:
    parts = {part.strip("_") for part in name.split(".")}
    assert not parts & JUNK_DRAWERS, f"{name}: a helper lives with its only user, or in a module named for what it does"


@EACH_MODULE
def test_modules_are_short(name: str) -> None:
    lines = len(FILES[name].read_text().splitlines())
    assert lines <= LONGEST_MODULE, f"{name} has {lines} lines; at {LONGEST_MODULE} it holds more than one noun"


@EACH_MODULE
def test_functions_are_read_at_a_glance(name: str) -> None:
    found = [
        f"{FILES[name]}:{node.lineno}: {node.name} has {length} lines"
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (length := code_lines(node)) > LONGEST_FUNCTION
    ]
    assert not found, "\n".join(found)


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        doc = node.body[0]
        lines -= (doc.end_lineno or doc.lineno) - doc.lineno + 1
    return lines

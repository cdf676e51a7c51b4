"""Importing asyncflow does nothing but define names, and leaves what is heavy to first use.

Each test imports it in a fresh process. Milliseconds are measured by `benchmarks`; here the modules
that an import loads are counted, which is the same on every machine.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import RunPython

# Loaded when something of them is first needed: each costs several milliseconds to some hundred.
LEFT_TO_FIRST_USE = {
    "aiofiles",
    "anyio",
    "asyncio",
    "cyclopts",
    "opentelemetry",
    "pydantic",
    "rich",
    "sniffio",
    "sqlite3",
    "trio",
    "uvloop",
}
OTHER_PACKAGES = {"orjson"}
# Of the standard library, beyond those of bare Python: 75 to 80 on CPython 3.11 to 3.13, most of them
# for dataclasses, typing, pathlib, uuid and logging. Lower it when it sinks; think twice before raising it.
MOST_STANDARD_MODULES = 80

MODULES = """
import sys
before = set(sys.modules)
import asyncflow
print(*sorted(set(sys.modules) - before))
"""

SIDE_EFFECTS = """
import builtins, gc, json, signal, sys, threading

sys.dont_write_bytecode = True
seen = []

def is_source(path):
    return str(path).endswith((".py", ".pyc", ".so", ".pyd", ".dylib"))

def watch(event, args):
    if event == "open" and is_source(args[0]) and not set(str(args[1])) & set("wax+"):
        return
    if event in ("open", "_thread.start_new_thread", "sqlite3.connect", "os.mkdir", "os.remove", "os.fork") or (
        event.startswith(("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.putenv"))
    ):
        seen.append(f"{event} {args!r}")

def world():
    logging = sys.modules.get("logging")
    loggers = [logging.root, *logging.root.manager.loggerDict.values()] if logging else []
    return {
        "print": repr(builtins.print),
        "builtins": sorted(vars(builtins)),
        "excepthooks": [repr(sys.excepthook), repr(sys.unraisablehook), repr(threading.excepthook)],
        "signals": [repr(signal.getsignal(each)) for each in sorted(signal.valid_signals())],
        "threads": [each.name for each in threading.enumerate()],
        "handlers": [repr(each) for logger in loggers for each in getattr(logger, "handlers", ())],
        "levels": [repr(logger) for logger in loggers if getattr(logger, "level", 0) and logger is not logging.root],
        "meta_path": [repr(each) for each in sys.meta_path],
        "trace": [repr(sys.gettrace()), repr(sys.getprofile())],
        "gc": [gc.isenabled(), *gc.get_threshold()],
    }

before = world()
sys.addaudithook(watch)
ACTION
happened = list(seen)
after = world()
changed = {key: after[key] for key in after if after[key] != before[key]}
sys.stdout.write(json.dumps({"happened": happened, "changed": changed}))
"""


def side_effects(run_python: RunPython, action: str) -> tuple[list[str], dict[str, object]]:
    seen = json.loads(run_python(SIDE_EFFECTS.replace("ACTION", action)).stdout)
    return seen["happened"], seen["changed"]


def test_importing_starts_nothing_and_changes_nothing(run_python: RunPython, tmp_path: Path) -> None:
    happened, changed = side_effects(run_python, "import asyncflow")
    assert happened == []
    assert changed == {}
    assert list(tmp_path.iterdir()) == []


def test_the_watch_sees_what_is_to_be_found(run_python: RunPython, tmp_path: Path) -> None:
    happened, changed = side_effects(
        run_python,
        "import logging, socket, threading\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "open('made', 'w').close()\n"
        "socket.socket().close()\n"
        "logging.getLogger('x').addHandler(logging.NullHandler())\n"
        "builtins.print = len\n",
    )
    assert {each.split()[0] for each in happened} >= {"open", "socket.__new__"}
    assert changed.keys() == {"print", "threads", "handlers"}
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_importing_leaves_what_is_heavy_to_first_use(run_python: RunPython) -> None:
    loaded = run_python(MODULES).stdout.split()
    assert "asyncflow" in loaded
    packages = {name.partition(".")[0] for name in loaded}
    assert not packages & LEFT_TO_FIRST_USE
    standard = run_python("import sys; print(*sys.stdlib_module_names)").stdout.split()
    assert packages - set(standard) - {"asyncflow"} <= OTHER_PACKAGES


def test_importing_loads_few_modules(run_python: RunPython) -> None:
    loaded = run_python(MODULES).stdout.split()
    standard = [name for name in loaded if name.partition(".")[0] not in {"asyncflow", *OTHER_PACKAGES}]
    assert len(standard) <= MOST_STANDARD_MODULES, f"{len(standard)} modules of the standard library: {standard}"


def test_a_plain_script_never_loads_a_loop(run_python: RunPython) -> None:
    done = run_python(
        "import sys, asyncflow\n"
        "@asyncflow.task\n"
        "def double(number):\n"
        "    return 2 * number\n"
        "@asyncflow.flow\n"
        "def plain():\n"
        "    return double(21)\n"
        "print(plain(), sorted({'asyncio', 'trio', 'anyio'} & set(sys.modules)))\n"
    )
    assert done.stdout == "42 []\n"

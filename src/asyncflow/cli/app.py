"""The commands and their options; what they do is in the modules beside this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from asyncflow import __version__
from asyncflow.cli import config, control, deployments, runs, upkeep
from asyncflow.cli.doctor import doctor
from asyncflow.cli.events import events
from asyncflow.cli.home import Home, use_home
from asyncflow.cli.load import load_flow
from asyncflow.cli.logs import logs
from asyncflow.cli.output import UsageError, complain, json_text, only_data_on_stdout, write_data
from asyncflow.cli.resume import resume
from asyncflow.cli.run import run_flow
from asyncflow.cli.serve import serve
from asyncflow.cli.waits import tree
from asyncflow.cli.watched import INTERRUPTED, Backend, Look
from asyncflow.exceptions import (
    AsyncflowError,
    DeploymentError,
    DeploymentParametersError,
    EntrypointError,
    OptionError,
    ParametersTooLargeError,
    ParameterValidationError,
    ScheduleError,
    SettingsFileError,
)
from asyncflow.runtime import HOME

__all__ = ["run_command"]

FAILED, MISUSED = 1, 2
_MISUSES = (
    DeploymentError,
    EntrypointError,
    OptionError,
    ParametersTooLargeError,
    ScheduleError,
    SettingsFileError,
    UsageError,
)

app = App(
    name="asyncflow",
    help="Run flows, and see to what was recorded of them.",
    version=__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.command(runs.app)
for command in (logs, control.cancel, control.pause, control.suspend, resume, tree, upkeep.reap, upkeep.rm):
    runs.app.command(command)
app.command(serve)
app.command(deployments.app)
app.command(events)
app.command(upkeep.gc)
app.command(doctor)
app.command(config.app)

Entrypoint = Annotated[str, Parameter(help="path/to/file.py:flow or package.module:flow.")]


@app.command
def run(
    entrypoint: Entrypoint,
    /,
    *,
    param: Annotated[
        list[str] | None,
        Parameter(
            name=["--param", "-p"],
            help="A parameter, name=value; the value is JSON, else text. Can be repeated.",
            negative="",
        ),
    ] = None,
    params: Annotated[
        str | None,
        Parameter(
            name="--params",
            help="A file with a JSON object of parameters; - is standard input.",
            allow_leading_hyphen=True,
        ),
    ] = None,
    backend: Annotated[Backend, Parameter(help="The event loop that an async flow runs in.")] = "asyncio",
    plain: Annotated[bool, Parameter(help="Plain lines, also on a terminal.", negative="")] = False,
    traceback: Annotated[bool, Parameter(help="Show the whole traceback of a failure.", negative="")] = False,
    home: Home = None,
) -> int:
    """Run a flow, show its runs as they go, and print its value as JSON.

    The exit status is 0 when the flow run is Completed, 1 when it is anything else, 2 when the
    command was misused and 130 after Ctrl-C.
    """
    use_home(home)
    look = Look(backend=backend, plain=plain, traceback=traceback)
    return run_flow(entrypoint, look, pairs=param or (), file=params)


@app.command
def schema(entrypoint: Entrypoint, /) -> int:
    """Print the JSON schema of a flow's parameters."""
    with only_data_on_stdout() as write:
        write(json_text(load_flow(entrypoint).parameters.model_dump()))
    return 0


@app.command
def version() -> int:
    """Print the version of asyncflow."""
    write_data(f"{__version__}\n")
    return 0


def run_command(words: Sequence[str]) -> int:
    """Run the command that `words` say; gives its exit status. What went wrong is told in one message."""
    try:
        return _finished(words)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); the interpreter must not flush to them at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except CycloptsError as error:
        complain(f"{error}\nasyncflow --help lists the commands, asyncflow COMMAND --help their options")
        return MISUSED
    except DeploymentParametersError as error:
        complain(f"{error}\nasyncflow deployments show {error.deployment} shows the parameters there are")
        return MISUSED
    except ParameterValidationError as error:
        complain(f"{error}\nasyncflow schema ENTRYPOINT shows the parameters there are")
        return MISUSED
    except AsyncflowError as error:
        complain(error)
        return MISUSED if isinstance(error, _MISUSES) else FAILED


def _finished(words: Sequence[str]) -> int:
    status: int | None = None
    try:
        status = app(words, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    finally:
        try:
            HOME.close_default()
        except AsyncflowError as error:
            if not status:
                raise
            complain(error)  # the status tells of something that came first, such as a signal
    return status or 0

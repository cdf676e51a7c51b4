"""`asyncflow run`: one flow, from the command line's words to its result and an exit status."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from asyncflow._specs import Colour
from asyncflow.cli.arguments import Arguments, arguments_for
from asyncflow.cli.load import load_flow, spec_of
from asyncflow.cli.output import only_data_on_stdout
from asyncflow.cli.watched import Look, Loop, call_watched
from asyncflow.flows import Flow

__all__ = ["run_flow"]


def run_flow(entrypoint: str, look: Look, *, pairs: Iterable[str], file: str | None) -> int:
    """Run the flow, show how it goes, print its value; gives the exit status."""
    with only_data_on_stdout() as write:
        flow = load_flow(entrypoint)
        arguments = arguments_for(flow, pairs, file)
        checked = flow.with_options(validate_parameters=False)
        return call_watched(checked, partial(_call, arguments), look, write)


def _call(arguments: Arguments, flow: Flow[..., Any], run_in_loop: Loop) -> Any:
    """A sync flow runs right here, on the main thread, where Ctrl-C and signals get to it."""
    positional, keywords = arguments
    colour = spec_of(flow).colour
    if colour is Colour.SYNC:
        return flow(*positional, **keywords)
    if colour is Colour.SYNC_GENERATOR:
        return list(flow(*positional, **keywords))

    async def call() -> Any:
        if colour is Colour.ASYNC_GENERATOR:
            async with flow.stream(*positional, **keywords) as items:
                return [item async for item in items]
        return await flow(*positional, **keywords)

    return run_in_loop(call)

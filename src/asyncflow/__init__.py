"""Flows and tasks for asyncio and trio: tracked, retried, recorded units of work inside the loop you already have."""

from asyncflow import exceptions, runtime, states
from asyncflow._engine.checkpoints import checkpoint
from asyncflow._engine.streams import Stream
from asyncflow._engine.sync_streams import SyncStream
from asyncflow.client import Client, get_client
from asyncflow.context import detached, tags
from asyncflow.flows import Flow, flow
from asyncflow.logs import get_run_logger
from asyncflow.retries import exponential_backoff
from asyncflow.runs import FlowRun, LogRecord, TaskRun
from asyncflow.runtime import Runtime
from asyncflow.settings import Settings
from asyncflow.states import State, StateType
from asyncflow.tasks import Task, task

__all__ = [
    "Client",
    "Flow",
    "FlowRun",
    "LogRecord",
    "Runtime",
    "Settings",
    "State",
    "StateType",
    "Stream",
    "SyncStream",
    "Task",
    "TaskRun",
    "__version__",
    "checkpoint",
    "detached",
    "exceptions",
    "exponential_backoff",
    "flow",
    "get_client",
    "get_run_logger",
    "runtime",
    "states",
    "tags",
    "task",
]

__version__ = "0.1.0"

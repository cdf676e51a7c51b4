"""Flows and tasks for asyncio and trio: tracked, retried, recorded units of work inside the loop you already have."""

from asyncflow import cache_policies, exceptions, runtime, states
from asyncflow._engine.checkpoints import checkpoint
from asyncflow._engine.map_stream import MapStream
from asyncflow._engine.streams import Stream
from asyncflow._engine.sync_streams import SyncStream
from asyncflow.cache_policies import NoKey
from asyncflow.client import Client, get_client
from asyncflow.completions import as_completed, wait
from asyncflow.concurrency import concurrency, rate_limit
from asyncflow.context import detached, tags
from asyncflow.control import cancel_flow_run, resume_flow_run
from asyncflow.flows import Flow, flow
from asyncflow.futures import FlowRunFuture, FutureList, TaskFuture
from asyncflow.logs import get_run_logger
from asyncflow.placeholders import allow_failure, quote, unmapped
from asyncflow.retries import exponential_backoff
from asyncflow.runs import FlowRun, LogRecord, TaskRun
from asyncflow.runtime import Runtime
from asyncflow.settings import Settings
from asyncflow.states import State, StateType
from asyncflow.tasks import Task, task
from asyncflow.transactions import Transaction, TransactionState, get_transaction, transaction

__all__ = [
    "Client",
    "Flow",
    "FlowRun",
    "FlowRunFuture",
    "FutureList",
    "LogRecord",
    "MapStream",
    "NoKey",
    "Runtime",
    "Settings",
    "State",
    "StateType",
    "Stream",
    "SyncStream",
    "Task",
    "TaskFuture",
    "TaskRun",
    "Transaction",
    "TransactionState",
    "__version__",
    "allow_failure",
    "as_completed",
    "cache_policies",
    "cancel_flow_run",
    "checkpoint",
    "concurrency",
    "detached",
    "exceptions",
    "exponential_backoff",
    "flow",
    "get_client",
    "get_run_logger",
    "get_transaction",
    "quote",
    "rate_limit",
    "resume_flow_run",
    "runtime",
    "states",
    "tags",
    "task",
    "transaction",
    "unmapped",
    "wait",
]

__version__ = "0.1.0"

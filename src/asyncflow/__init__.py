"""Flows and tasks for asyncio and trio: tracked, retried, recorded units of work inside the loop you already have."""

from asyncflow import await_tree, cache_policies, exceptions, runtime, states
from asyncflow._engine.checkpoints import checkpoint
from asyncflow._engine.map_stream import MapStream
from asyncflow._engine.streams import Stream
from asyncflow._engine.sync_streams import SyncStream
from asyncflow._operation import Operation
from asyncflow._run_deployment import run_deployment
from asyncflow._subscriptions import Subscription
from asyncflow._version import __version__
from asyncflow.cache_policies import NoKey
from asyncflow.client import Client, get_client
from asyncflow.completions import as_completed, wait
from asyncflow.concurrency import concurrency, rate_limit
from asyncflow.context import detached, tags
from asyncflow.control import cancel_flow_run, resume_flow_run
from asyncflow.deployment_records import DeploymentRecord
from asyncflow.deployments import Deployment
from asyncflow.disconnects import CancelOnDisconnect, cancel_on_disconnect
from asyncflow.events import Event, EventFilter, emit_event
from asyncflow.flows import Flow, flow
from asyncflow.futures import FlowRunFuture, FutureList, TaskFuture
from asyncflow.hosting import cleanup_ctx, get_runtime, lifespan
from asyncflow.inputs import receive_input, send_input
from asyncflow.item_streams import ItemStream, StreamItem
from asyncflow.logs import get_run_logger
from asyncflow.pauses import pause_flow_run, suspend_flow_run
from asyncflow.placeholders import allow_failure, quote, unmapped
from asyncflow.retries import exponential_backoff
from asyncflow.runs import FlowRun, LogRecord, TaskRun
from asyncflow.runtime import Runtime
from asyncflow.serving import serve
from asyncflow.settings import Settings
from asyncflow.sse import SSE_HEADERS, EventStream, ServerSentEvent, sse
from asyncflow.states import State, StateType
from asyncflow.tasks import Task, task
from asyncflow.transactions import Transaction, TransactionState, get_transaction, transaction

__all__ = [
    "SSE_HEADERS",
    "CancelOnDisconnect",
    "Client",
    "Deployment",
    "DeploymentRecord",
    "Event",
    "EventFilter",
    "EventStream",
    "Flow",
    "FlowRun",
    "FlowRunFuture",
    "FutureList",
    "ItemStream",
    "LogRecord",
    "MapStream",
    "NoKey",
    "Operation",
    "Runtime",
    "ServerSentEvent",
    "Settings",
    "State",
    "StateType",
    "Stream",
    "StreamItem",
    "Subscription",
    "SyncStream",
    "Task",
    "TaskFuture",
    "TaskRun",
    "Transaction",
    "TransactionState",
    "__version__",
    "allow_failure",
    "as_completed",
    "await_tree",
    "cache_policies",
    "cancel_flow_run",
    "cancel_on_disconnect",
    "checkpoint",
    "cleanup_ctx",
    "concurrency",
    "detached",
    "emit_event",
    "exceptions",
    "exponential_backoff",
    "flow",
    "get_client",
    "get_run_logger",
    "get_runtime",
    "get_transaction",
    "lifespan",
    "pause_flow_run",
    "quote",
    "rate_limit",
    "receive_input",
    "resume_flow_run",
    "run_deployment",
    "runtime",
    "send_input",
    "serve",
    "sse",
    "states",
    "suspend_flow_run",
    "tags",
    "task",
    "transaction",
    "unmapped",
    "wait",
]

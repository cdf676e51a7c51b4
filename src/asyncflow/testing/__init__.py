"""For tests of your own flows.

Beside what is here, the pytest plugin gives each test a runtime of its own, in memory, and the
fixtures `asyncflow_runtime`, `asyncflow_client`, `asyncflow_logs`, `asyncflow_events` and
`virtual_clock`.
"""

from asyncflow._backend.virtual_clock import VirtualClock
from asyncflow.testing._cancelling import cancel_everywhere
from asyncflow.testing._captured import CapturedEvents, CapturedLogs
from asyncflow.testing._faults import Fault
from asyncflow.testing._faulty_store import FaultyStore
from asyncflow.testing._reports import Attempt, CancelReport, CancelSafetyError

__all__ = [
    "Attempt",
    "CancelReport",
    "CancelSafetyError",
    "CapturedEvents",
    "CapturedLogs",
    "Fault",
    "FaultyStore",
    "VirtualClock",
    "cancel_everywhere",
]

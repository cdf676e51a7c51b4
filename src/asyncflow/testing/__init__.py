"""For tests of your own flows.

`cancel_everywhere` cancels a call at each place where it can be cancelled, and looks at what is left.
"""

from asyncflow.testing._cancelling import cancel_everywhere
from asyncflow.testing._reports import Attempt, CancelReport, CancelSafetyError

__all__ = ["Attempt", "CancelReport", "CancelSafetyError", "cancel_everywhere"]

"""A process that has imported everything and forks a child for each program it is asked to run.

`python -m tests.crash.template FOLDER` reads one line of JSON, `[program, *arguments]`, forks, and
has the child run that function of `programs` or `resumable` on its own standard input and output. When the child
is gone it says `exit STATUS` and reads the next line. A fork takes 2 ms where a new Python takes
200, and nothing is imported any more, so that the n-th system call of a child is one of ours.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.crash import programs, resumable

PROGRAMS: dict[str, Any] = vars(programs) | vars(resumable)


def main() -> None:
    programs.warm_up(Path(sys.argv[1]))
    programs.say("warm")
    while command := os.read(0, 65_536):  # the other side sends a line and waits
        name, *arguments = json.loads(command)
        child = os.fork()
        if not child:
            PROGRAMS[name](*arguments)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        programs.say("exit", os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()

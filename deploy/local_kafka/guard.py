"""Becomes a command, and leaves behind a watcher that kills it once the process that started it is gone.

    python guard.py FD COMMAND ...

FD is the reading end of a pipe whose other end only the starter holds, so that it ends when the starter does,
however it dies.  Rules: the command keeps this process's id, so that signals reach it directly; the watcher kills
nothing but its own parent.  PR_SET_PDEATHSIG would do without a watcher, but it fires when the *thread* that
forked ends, and only Linux has it.
"""

import os
import signal
import sys


def main() -> None:
    """Fork the watcher, then turn into the command."""
    lifeline = int(sys.argv[1])
    command = sys.argv[2:]
    own_id = os.getpid()
    if os.fork() == 0:
        _watch(lifeline, own_id)
    os.close(lifeline)
    os.execv(command[0], command)  # noqa: S606 - the program is the caller's own choice


def _watch(lifeline: int, guarded: int) -> None:
    """Wait for the lifeline's end.  A parent that ended earlier was replaced, and its id may be another's now."""
    while os.read(lifeline, 1):
        pass
    if os.getppid() == guarded:
        os.kill(guarded, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()

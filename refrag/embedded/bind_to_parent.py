"""Become the given command, bound to be terminated when the parent ends, with files that only its user can read.

    python -I -S bind_to_parent.py <parent's process id> <command> [<argument> …]

A program of its own and not a preexec_fn: Python code between fork and exec may deadlock in a process
with threads, which any process with torch in it has.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent_id, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    # The parent may have died before the line above took effect.
    if os.getppid() != int(parent_id):
        sys.exit("the parent process has ended already")
    # Shared memory holds questions and answers, and all users of a machine see its names.
    os.umask(0o077)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()

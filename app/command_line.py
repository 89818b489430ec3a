"""How the programs of the command line end when their reader goes, or Ctrl-C comes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from app.signals import raise_interrupts

READER_GONE = 141
"""As a shell counts the end by SIGPIPE."""


def run_program(main: Callable[[], int]) -> int:
    """The exit code of *main*; where nobody reads what it prints any more, or Ctrl-C came, its own.

    What *main* holds is given back in either case.
    """
    raise_interrupts()
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would write what is left at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return code

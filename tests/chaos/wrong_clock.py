"""A program as on a host whose clock is wrong: `python -m tests.chaos.wrong_clock MOMENT MODULE …`.

MOMENT is what the clock shows at the start, in Unix seconds; it goes on from there. The monotonic
clock, which nobody can set, stays as it is.
"""

from __future__ import annotations

import runpy
import sys

import time_machine

if __name__ == "__main__":
    _, moment, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    with time_machine.travel(float(moment), tick=True):
        runpy.run_module(module, run_name="__main__", alter_sys=True)

"""The gateway's own policies, index and books over simulated engines, in virtual time."""

from loadgen.simulate.arms import ARRANGEMENTS, arrangement
from loadgen.simulate.prepare import Prepared, coarser, prepare
from loadgen.simulate.run import run_arm, run_loop, simulate

__all__ = [
    "ARRANGEMENTS",
    "Prepared",
    "arrangement",
    "coarser",
    "prepare",
    "run_arm",
    "run_loop",
    "simulate",
]

"""The gateway's own policies, index and books over simulated engines, in virtual time."""

from loadgen.simulate.arms import ARRANGEMENTS, arms_of, arrangement
from loadgen.simulate.loop import Change, Outage
from loadgen.simulate.prepare import Prepared, coarser, later, prepare, together
from loadgen.simulate.run import ArmRun, arm_of, run_arm, run_loop, run_once, simulate

__all__ = [
    "ARRANGEMENTS",
    "ArmRun",
    "Change",
    "Outage",
    "Prepared",
    "arm_of",
    "arms_of",
    "arrangement",
    "coarser",
    "later",
    "prepare",
    "run_arm",
    "run_loop",
    "run_once",
    "simulate",
    "together",
]

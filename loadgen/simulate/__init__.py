"""The gateway's own policies, index and books over simulated engines, in virtual time."""

from loadgen.simulate.arms import ARRANGEMENTS, arrangement
from loadgen.simulate.loop import Change
from loadgen.simulate.prepare import Prepared, coarser, prepare
from loadgen.simulate.run import ArmRun, arm_of, run_arm, run_loop, run_once, simulate

__all__ = [
    "ARRANGEMENTS",
    "ArmRun",
    "Change",
    "Prepared",
    "arm_of",
    "arrangement",
    "coarser",
    "prepare",
    "run_arm",
    "run_loop",
    "run_once",
    "simulate",
]

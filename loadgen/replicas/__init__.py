"""Simulated vLLM replicas over HTTP."""

from loadgen.replicas.faults import Fault, Received
from loadgen.replicas.fleet import QUICK, SimulatedFleet
from loadgen.replicas.replica import Replica

__all__ = ["QUICK", "Fault", "Received", "Replica", "SimulatedFleet"]

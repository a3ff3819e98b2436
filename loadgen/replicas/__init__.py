"""Simulated vLLM replicas that answer over HTTP."""

from loadgen.replicas.faults import Fault, Received
from loadgen.replicas.fleet import QUICK, SimulatedFleet
from loadgen.replicas.nixl import NixlSettings
from loadgen.replicas.replica import Replica

__all__ = ["QUICK", "Fault", "NixlSettings", "Received", "Replica", "SimulatedFleet"]

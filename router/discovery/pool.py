"""An InferencePool, as far as it says which pods are replicas.

Fields: ``inference.networking.k8s.io/v1`` InferencePool of the Gateway API Inference Extension.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from router.discovery.objects import Metadata

GROUP: Final = "inference.networking.k8s.io"
VERSION: Final = "v1"
PLURAL: Final = "inferencepools"


class Selector(msgspec.Struct, rename="camel"):
    """Labels that every pod of the pool has."""

    match_labels: dict[str, str] = {}


class TargetPort(msgspec.Struct):
    """A port on which every pod serves; several are engines of their own."""

    number: int


class PoolSpec(msgspec.Struct, rename="camel"):
    """What the pool consists of."""

    selector: Selector = msgspec.field(default_factory=Selector)
    target_ports: list[TargetPort] = []


class InferencePool(msgspec.Struct):
    """One pool, with the fields that discovery reads."""

    metadata: Metadata
    spec: PoolSpec = msgspec.field(default_factory=PoolSpec)

    @property
    def label_selector(self) -> str:
        """For a list of its pods; empty where it names no labels, which selects nothing."""
        labels = self.spec.selector.match_labels
        return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))

    @property
    def ports(self) -> tuple[int, ...]:
        """Of each of its pods."""
        return tuple(port.number for port in self.spec.target_ports)


def named(pools: Iterable[InferencePool], name: str) -> InferencePool | None:
    """The pool of this name that is not being deleted."""
    for pool in pools:
        if pool.metadata.name == name and pool.metadata.deletion_timestamp is None:
            return pool
    return None


OBJECTIVES_GROUP: Final = "inference.networking.x-k8s.io"
OBJECTIVES_VERSION: Final = "v1alpha2"
OBJECTIVES: Final = "inferenceobjectives"


class PoolReference(msgspec.Struct):
    """To the pool whose requests an objective is about."""

    name: str = ""


class ObjectiveSpec(msgspec.Struct, rename="camel"):
    """How urgent requests with the objective are: higher goes first, 0 is usual."""

    priority: int = 0
    pool_ref: PoolReference = msgspec.field(default_factory=PoolReference)


class InferenceObjective(msgspec.Struct):
    """A name that requests give, and what it means for a pool's queue."""

    metadata: Metadata
    spec: ObjectiveSpec = msgspec.field(default_factory=ObjectiveSpec)


def priorities(objectives: Iterable[InferenceObjective], pool: str) -> dict[str, int]:
    """The pool's objectives: name -> priority as Kubernetes has it, higher goes first."""
    return {
        each.metadata.name: each.spec.priority
        for each in objectives
        if each.spec.pool_ref.name == pool
    }

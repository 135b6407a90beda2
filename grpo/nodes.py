"""The nodes of a Ray cluster: what they have, what each says when asked, and what is set aside on them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from grpo.placement import SOME_CPU, Reservation, Seat
from sandbox.errors import SystemFault

RESERVE_TIMEOUT_S = 120.0


class ClusterTooSmall(SystemFault):
    """What a run is to have was not free in time."""


class Nodes:
    """Those of the cluster that this process has joined."""

    def __init__(self) -> None:
        self._reserved: dict[str, PlacementGroup] = {}

    def names(self) -> dict[str, str]:
        """Of the nodes that are alive, by id."""
        return {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}

    def resources(self) -> dict[str, float]:
        """What all nodes have together: CPU, GPU and more."""
        return dict(ray.cluster_resources())

    def free_resources(self) -> dict[str, float]:
        """What of it nothing holds. What is used up is missing."""
        return dict(ray.available_resources())

    async def ask_each(self, function: Any, *args: Any, timeout_s: float) -> dict[str, Any]:
        """What `function(*args)` returns on each node, by the node's name; a RayError or TimeoutError where it does not."""
        remote = ray.remote(function)

        async def ask(node_id: str) -> Any:
            here = NodeAffinitySchedulingStrategy(node_id, soft=False)
            reference = remote.options(num_cpus=SOME_CPU, max_retries=0, scheduling_strategy=here).remote(*args)
            try:
                return await asyncio.wait_for(reference, timeout_s)
            except TimeoutError:
                ray.cancel(reference)
                return TimeoutError(f"no answer within {timeout_s:g} s.")
            except RayError as error:
                return error

        nodes = self.names()
        alike = Counter(nodes.values())
        names = [f"{name} {node_id[:6]}" if alike[name] > 1 else name for node_id, name in nodes.items()]
        return dict(zip(names, await asyncio.gather(*map(ask, nodes)), strict=True))

    async def reserve(self, reservations: Sequence[Reservation], *, timeout_s: float = RESERVE_TIMEOUT_S) -> None:
        """Set everything aside, one after the other. Raises ClusterTooSmall when that takes too long.

        Ray itself waits for ever, also for what no cluster of this size will have.
        """
        for reservation in reservations:
            group = placement_group(list(reservation.bundles), strategy=reservation.strategy)
            if not await asyncio.to_thread(group.wait, timeout_s):
                remove_placement_group(group)
                asked = " + ".join(_amount(bundle) for bundle in reservation.bundles)
                has, free = _amount(self.resources()), _amount(self.free_resources())
                raise ClusterTooSmall(
                    f"Ray could not set aside {asked} for the {reservation.name} within {timeout_s:g} s. The cluster's "
                    f"{len(self.names())} nodes have {has}, of which {free} are free. "
                    "Add nodes, wait for other jobs (`grpo jobs`), or lower engine.num_workers or engine.tensor_parallel_size."
                )
            self._reserved[reservation.name] = group

    def options(self, seat: Seat) -> dict[str, Any]:
        """Those of an actor that takes this seat."""
        group = self._reserved[seat.reservation]
        return {
            "num_cpus": SOME_CPU,
            "num_gpus": seat.num_gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=seat.bundle),
        }


def _amount(resources: Mapping[str, float]) -> str:
    """`8 GPU, 64 CPU`, of what a run may ask for."""
    return ", ".join(f"{resources[name]:g} {name}" for name in ("GPU", "CPU") if resources.get(name, 0) >= SOME_CPU) or "nothing"

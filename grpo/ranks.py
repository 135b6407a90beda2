"""The processes of one learner: how they meet, how the model is shared out among them, and how each learns what all have found.

Every rank knows every row of a step and decides as the others do; only what goes through the model is dealt. A process alone is
rank 0 of 1: nothing is shared out, nobody is asked.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from sandbox.errors import SystemFault

MEETING_TIMEOUT = datetime.timedelta(minutes=5)
# How long a rank waits for the others in the middle of its work. One that died is noticed at once.
WORK_TIMEOUT = datetime.timedelta(minutes=30)

T = TypeVar("T")


class RanksApart(SystemFault):
    """The processes of a learner did not find each other."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which of `count` processes this is. They meet at `address`, the host and port of a store that `open_meeting` opened."""

    rank: int = 0
    count: int = 1
    address: tuple[str, int] = ("", 0)


ALONE = Place()


def open_meeting(host: str) -> TCPStore:
    """A store on a free port of this process, for ranks to meet at `host`. It lives as long as the object."""
    return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=MEETING_TIMEOUT)


class Ranks:
    """The ranks as one of them sees them."""

    def __init__(self, place: Place, device: str) -> None:
        self.rank = place.rank
        self.count = place.count
        self._mesh = meet(place, device) if place.count > 1 else None

    @property
    def is_first(self) -> bool:
        """Whether this one writes what is written once."""
        return self.rank == 0

    def gather(self, own: T) -> list[T]:
        """What each rank gives, in their order. All must call."""
        if self._mesh is None:
            return [own]
        given: list[T | None] = [None] * self.count
        dist.all_gather_object(given, own)
        return given  # type: ignore[return-value]

    def shard(self, root: nn.Module, layers: Iterable[nn.Module]) -> None:
        """Leave each rank its share of every weight, in place (FSDP2).

        While a layer computes its weights are whole, and those of `root` outside the layers while `root` does. Gradients are summed
        over the ranks, not averaged: the loss is a sum over rows whose weights are those of the whole step.
        """
        if self._mesh is None:
            return
        from torch.distributed.fsdp import fully_shard

        for module in (*layers, root):
            # The root's weights too: left whole after scoring they would not follow those that are trained or swapped.
            sharded = fully_shard(module, mesh=self._mesh, reshard_after_forward=True)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it sums


def meet(place: Place, device: str) -> DeviceMesh:
    """Join the other ranks. Raises RanksApart when they do not come."""
    host, port = place.address
    try:
        store = TCPStore(host, port, is_master=False, timeout=MEETING_TIMEOUT)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.count, timeout=WORK_TIMEOUT)
        # The group came together under the long timeout of work, so the first to miss someone says so here.
        store.set(f"rank {place.rank} is here", "")
        store.wait([f"rank {rank} is here" for rank in range(place.count)], MEETING_TIMEOUT)
    except (RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise RanksApart(
            f"rank {place.rank} of the learner's {place.count} did not meet the others at {host}:{port} within "
            f"{MEETING_TIMEOUT.total_seconds():.0f} s: {reason} Look into the logs of the other ranks, and whether their machines "
            "reach this address; or set learner.num_ranks = 1."
        ) from error
    return init_device_mesh(device, (place.count,))


def whole(tensor: Tensor) -> Tensor:
    """The tensor in full, of which each rank holds a share. All must call; one that is not shared out is given as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_share(tensor: Tensor) -> Tensor:
    """What this rank holds of it, without gradient: a view."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()

"""Where the parts of a run are put: how many GPUs each has, which share one, and what Ray is to set aside for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from sandbox.errors import UserError

if TYPE_CHECKING:
    from grpo.config import RunConfig

PlacementMode = Literal["auto", "separate", "colocated"]
# Ray puts what reserves nothing anywhere, whatever a strategy says.
SOME_CPU = 0.001


class Seat(NamedTuple):
    """One actor's place: a bundle of a reservation, and the GPUs it takes of that bundle."""

    reservation: str
    bundle: int
    num_gpus: float = 0.0


@dataclass(frozen=True)
class Reservation:
    """What is set aside together, a bundle never across nodes. PACK: on few nodes; SPREAD: on as many as there are."""

    name: str
    bundles: tuple[dict[str, float], ...]
    strategy: Literal["PACK", "SPREAD"]


@dataclass(frozen=True)
class Placement:
    """A seat for every actor of a run, by rank, worker and service."""

    reservations: tuple[Reservation, ...]
    learner: tuple[Seat, ...]
    workers: tuple[Seat, ...]
    verifiers: tuple[Seat, ...]

    @property
    def num_gpus(self) -> float:
        return sum(bundle.get("GPU", 0.0) for reservation in self.reservations for bundle in reservation.bundles)

    @property
    def is_colocated(self) -> bool:
        """Whether learner and workers share GPUs."""
        return any(seat.reservation == "shared" for seat in self.learner)

    @property
    def is_one_gpu(self) -> bool:
        """Whether all of the learner and of the workers is on the same GPU."""
        return self.is_colocated and len({(seat.reservation, seat.bundle) for seat in (*self.learner, *self.workers)}) == 1


def place(*, mode: PlacementMode, gpus: float | None, ranks: int, workers: int, tensor_parallel: int, services: int) -> Placement:
    """The seats of a run on a cluster with that many GPUs; None: it runs on CPUs.

    Apart, every rank has a GPU and every worker `tensor_parallel` of them; ranks are packed on few nodes, since they exchange
    gradients, workers and verifiers spread over as many as there are. Colocated, worker i shares a GPU with rank i.
    Raises UserError when there are too few.
    """
    verifiers = _reservation("verifiers", services, 0.0, "SPREAD")
    seats = tuple(Seat("verifiers", i) for i in range(services))
    apart = ranks + workers * tensor_parallel
    if gpus is None or (mode != "colocated" and gpus >= apart):
        per_rank, per_worker = (0.0, 0.0) if gpus is None else (1.0, float(tensor_parallel))
        learner = [_reservation("learner", ranks, per_rank, "PACK")] if ranks else []
        return Placement(
            (*learner, _reservation("workers", workers, per_worker, "SPREAD"), verifiers),
            tuple(Seat("learner", i, per_rank) for i in range(ranks)),
            tuple(Seat("workers", i, per_worker) for i in range(workers)),
            seats,
        )
    if mode == "separate":
        raise UserError(
            f'placement = "separate" needs {apart} GPUs: {ranks} for the learner, {workers} x {tensor_parallel} for the workers; '
            f'the cluster has {gpus:g}. Lower engine.num_workers, add nodes, or use placement = "auto".'
        )
    return _colocated(
        gpus, ranks=ranks, workers=workers, tensor_parallel=tensor_parallel, apart=apart, verifiers=verifiers, seats=seats
    )


def placement_of(config: RunConfig, *, gpus: float | None, services: int, learns: bool = True) -> Placement:
    """The seats that a config asks for; without a learner where nothing is learnt. Raises UserError as `place` does."""
    return place(
        mode=config.placement,
        gpus=gpus,
        ranks=config.learner.num_ranks if learns else 0,
        workers=config.engine.num_workers,
        tensor_parallel=config.engine.tensor_parallel_size,
        services=services,
    )


def _colocated(
    gpus: float, *, ranks: int, workers: int, tensor_parallel: int, apart: int, verifiers: Reservation, seats: tuple[Seat, ...]
) -> Placement:
    if tensor_parallel > 1:
        raise UserError(
            f"engine.tensor_parallel_size is {tensor_parallel}, and a worker of several GPUs shares none. That takes {apart}; "
            f'the cluster has {gpus:g}. Add nodes, lower engine.num_workers, or drop placement = "colocated".'
        )
    if gpus < max(1, ranks):
        raise UserError(
            f"the config asks for {apart} GPUs, and for {max(1, ranks)} at least, one for each rank of the learner; the "
            f"cluster has {gpus:g}. Add nodes with GPUs, or set device = cpu."
        )
    used = min(int(gpus), max(ranks, workers))
    on_bundle = Counter([*range(ranks), *(i % used for i in range(workers))])
    shares = {bundle: int(100 / count) / 100 for bundle, count in on_bundle.items()}
    return Placement(
        (_reservation("shared", used, 1.0, "PACK", actors=max(on_bundle.values())), verifiers),
        tuple(Seat("shared", i, shares[i]) for i in range(ranks)),
        tuple(Seat("shared", i % used, shares[i % used]) for i in range(workers)),
        seats,
    )


def _reservation(name: str, count: int, gpus: float, strategy: Literal["PACK", "SPREAD"], *, actors: int = 1) -> Reservation:
    bundle = {"CPU": SOME_CPU * actors} | ({"GPU": gpus} if gpus else {})
    return Reservation(name, tuple(dict(bundle) for _ in range(count)), strategy)

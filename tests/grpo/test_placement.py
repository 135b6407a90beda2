"""Who gets which GPUs, by hand for small clusters and as properties for any."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.placement import SOME_CPU, Placement, Seat, place
from sandbox.errors import UserError


def seats_of(placement: Placement) -> list[Seat]:
    return [*placement.learner, *placement.workers, *placement.verifiers]


def test_on_eight_gpus_everything_has_its_own():
    placement = place(mode="auto", gpus=8, ranks=2, workers=3, tensor_parallel=2, services=1)
    assert not placement.is_colocated
    assert [seat.num_gpus for seat in placement.learner] == [1, 1]
    assert [seat.num_gpus for seat in placement.workers] == [2, 2, 2]  # 2 + 3 x 2 = 8
    assert placement.num_gpus == 8
    assert {reservation.name: reservation.strategy for reservation in placement.reservations} == {
        "learner": "PACK",
        "workers": "SPREAD",
        "verifiers": "SPREAD",
    }


def test_on_one_gpu_learner_and_worker_share_it():
    placement = place(mode="auto", gpus=1, ranks=1, workers=1, tensor_parallel=1, services=1)
    assert placement.is_colocated
    assert placement.learner == (Seat("shared", 0, 0.5),)
    assert placement.workers == (Seat("shared", 0, 0.5),)
    assert placement.is_one_gpu


def test_only_one_gpu_for_all_is_one_gpu():
    together = place(mode="colocated", gpus=1, ranks=1, workers=3, tensor_parallel=1, services=1)
    assert together.is_one_gpu
    for gpus, ranks, workers in ((2, 1, 2), (2, 2, 1), (8, 8, 8)):
        assert not place(mode="colocated", gpus=gpus, ranks=ranks, workers=workers, tensor_parallel=1, services=1).is_one_gpu
    for gpus in (2, None):
        assert not place(mode="auto", gpus=gpus, ranks=1, workers=1, tensor_parallel=1, services=1).is_one_gpu


def test_colocated_on_eight_gpus_each_has_a_rank_and_a_worker():
    placement = place(mode="colocated", gpus=8, ranks=8, workers=8, tensor_parallel=1, services=1)
    assert [(seat.bundle, seat.num_gpus) for seat in placement.learner] == [(i, 0.5) for i in range(8)]
    assert placement.learner == placement.workers


def test_where_nothing_is_learnt_a_worker_has_the_only_gpu_for_itself():
    placement = place(mode="auto", gpus=1, ranks=0, workers=1, tensor_parallel=1, services=1)
    assert placement.workers == (Seat("workers", 0, 1.0),)
    assert [reservation.name for reservation in placement.reservations] == ["workers", "verifiers"]


def test_on_cpus_nothing_asks_for_a_gpu_and_everything_for_a_place():
    placement = place(mode="auto", gpus=None, ranks=1, workers=2, tensor_parallel=1, services=3)
    assert placement.num_gpus == 0
    assert all(bundle == {"CPU": SOME_CPU} for reservation in placement.reservations for bundle in reservation.bundles)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mode": "separate", "gpus": 2, "workers": 4}, r"needs 5 GPUs: 1 for the learner, 4 x 1 for the workers.*has 2"),
        ({"mode": "auto", "gpus": 0}, "asks for 2 GPUs, and for 1 at least.*the cluster has 0"),
        ({"mode": "auto", "gpus": 2, "ranks": 4}, "asks for 5 GPUs, and for 4 at least.*the cluster has 2"),
        ({"mode": "auto", "gpus": 2, "tensor_parallel": 2}, "a worker of several GPUs shares none.*takes 3.*has 2"),
        ({"mode": "colocated", "gpus": 8, "tensor_parallel": 2}, 'drop placement = "colocated"'),
    ],
)
def test_what_a_cluster_cannot_hold_is_told_with_the_numbers(asked: dict, message: str):
    with pytest.raises(UserError, match=message):
        place(**{"ranks": 1, "workers": 1, "tensor_parallel": 1, "services": 1} | asked)


@given(
    gpus=st.integers(1, 32),
    ranks=st.integers(1, 8),
    workers=st.integers(1, 12),
    tensor_parallel=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(["auto", "separate", "colocated"]),
)
def test_no_bundle_is_given_away_twice_and_no_more_gpus_are_asked_for_than_there_are(gpus, ranks, workers, tensor_parallel, mode):
    try:
        placement = place(mode=mode, gpus=gpus, ranks=ranks, workers=workers, tensor_parallel=tensor_parallel, services=2)
    except UserError:
        assert mode == "colocated" or gpus < ranks + workers * tensor_parallel
        return
    assert (len(placement.learner), len(placement.workers), len(placement.verifiers)) == (ranks, workers, 2)
    assert placement.num_gpus <= gpus
    taken: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for seat in seats_of(placement):
        taken[seat.reservation, seat.bundle].append(seat.num_gpus)
    for reservation in placement.reservations:
        for i, bundle in enumerate(reservation.bundles):
            seats = taken.pop((reservation.name, i))
            assert sum(seats) <= bundle.get("GPU", 0.0)
            assert len(seats) * SOME_CPU <= bundle["CPU"] + 1e-9
    assert not taken, "every seat is in a bundle that was reserved"
    assert len({seat.bundle for seat in placement.learner}) == ranks, "two ranks on one GPU cannot exchange gradients"

"""Verifier services as actors: on every node of a cluster, and no verdict is lost with one of them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes

from grpo.cluster import Cluster
from grpo.nodes import ClusterTooSmall
from grpo.placement import Reservation, place
from tests.integration.runs import curve, finish, ours, run, start, wait_for_step, workplace_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

workplace = workplace_of({"learner.learning_rate": 1e-6, "verifiers.num_services": 2})


def verdicts(place: Path, name: str = "tiny") -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key.startswith(("reward/", "outcome/"))} for line in curve(place, name)]


def service_of(place: Path, index: int) -> psutil.Process:
    log = (place / f"runs/tiny/logs/verifiers-{index}.log").resolve()
    return next(process for process in ours(place) if any(Path(file.path) == log for file in process.open_files()))


def test_a_killed_service_is_replaced_and_the_verdicts_are_the_same(workplace: Path) -> None:
    run(workplace, "train", "tiny.toml", "--run-dir", "runs/undisturbed", "--set", "verifiers.num_services=1")
    process = start(workplace, "train", "tiny.toml")
    wait_for_step(workplace, 1, process)
    service_of(workplace, 0).kill()
    output = finish(process)

    assert process.returncode == 0, output
    assert [line["verify/lost_services"] for line in curve(workplace) if "reward/mean" in line][-1] == 1
    assert verdicts(workplace) == verdicts(workplace, "undisturbed")


async def test_services_are_spread_over_the_nodes(tmp_path: Path) -> None:
    class Whereabouts:  # in here, so that it travels by value
        async def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

        async def close(self) -> None:
            """Holds nothing."""

    nodes = RayNodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=1)
        nodes.add_node(num_cpus=1)
        cluster = Cluster(nodes.address, logs=tmp_path)
        try:
            assert cluster.num_nodes == 3
            placement = place(mode="auto", gpus=None, ranks=1, workers=1, tensor_parallel=1, services=3)
            await cluster.nodes.reserve(placement.reservations)
            actors = [await cluster.start(Whereabouts, name=f"verifiers-{i}", seat=placement.verifiers[i]) for i in range(3)]
            assert len({await actor.node() for actor in actors}) == 3
            for actor in actors:
                await actor.close()

            told = await cluster.nodes.ask_each(lambda: ray.get_runtime_context().get_node_id(), timeout_s=60)
            assert set(told.values()) == set(cluster.nodes.names())

            too_much = Reservation("workers", ({"GPU": 8.0, "CPU": 1.0},), "SPREAD")
            asked = (
                r"could not set aside 8 GPU, 1 CPU for the workers within 0.5 s. The cluster's 3 nodes have 3 CPU, of which 2.99"
            )
            with pytest.raises(ClusterTooSmall, match=asked):
                await cluster.nodes.reserve([too_much], timeout_s=0.5)
        finally:
            cluster.shutdown()
    finally:
        nodes.shutdown()

"""Verifier services as actors: on every node of a cluster, and no verdict is lost with one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes

from grpo.cluster import Cluster
from tests.integration.runs import curve, finish, ours, run, start, wait_for_step, wait_until_gone

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

CONFIG = """
steps = 6
groups_per_step = 4
group_size = 4
[tasks]
source = "tasks.jsonl"
held_out = 8
rewards = "digits"
[sampling]
max_tokens = 12
[engine]
kind = "hf"
max_model_len = 64
[evaluation]
every = 0
num_tasks = 4
[verifiers]
num_services = 2
[rewards.digits]
format = { options = { pattern = '[\\s\\S]*[0-4][\\s\\S]*' } }
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    rows = [{"question": f"{n}=", "answer": str(n)} for n in range(100)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "tiny.toml").write_text(CONFIG)
    yield tmp_path
    wait_until_gone(tmp_path)


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
            actors = [await cluster.start(Whereabouts, name=f"verifiers-{i}", place=i) for i in range(3)]
            assert len({await actor.node() for actor in actors}) == 3
            for actor in actors:
                await actor.close()
        finally:
            cluster.shutdown()
    finally:
        nodes.shutdown()

"""Learner and engines that have the memory in turns: who sleeps when, and where nobody does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from grpo.batch import Example
from grpo.colocated import LearnerInTurns
from grpo.config import config_of, read_toml
from grpo.learner import Update
from grpo.parts import engines_sleep, learner_spec, make_delivery, make_fleet
from grpo.placement import Seat
from rollout.delivery import BroadcastDelivery, FileDelivery, LoanDelivery
from rollout.errors import WorkerLost
from rollout.fleet import Fleet
from rollout.sampling import Sampling
from rollout.transports import WeightPlacement
from tests.fakes import FakeLearner, FakeWorker, make_task

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.toml"


def config(*changes: str) -> Any:
    return config_of(read_toml(QUICKSTART), changes, where="test")


async def test_the_engines_sleep_while_the_learner_updates_and_wake_with_its_weights_or_their_own():
    workers = [FakeWorker(), FakeWorker()]

    class Watching(FakeLearner):
        async def update(self, examples: Sequence[Example]) -> Update:
            assert all(worker.is_asleep for worker in workers)
            return await super().update(examples)

    async def start_worker(index: int) -> FakeWorker:
        return workers[index]

    fleet = Fleet(start_worker, num_workers=2, sampling=Sampling(), run_seed=7, discard=lambda snapshot: None)
    await fleet.start()
    learner = LearnerInTurns(Watching(), fleet)
    await fleet.load(await learner.publish(0))
    undisturbed = await fleet.sample(make_task(), n=4)

    await learner.update([])
    assert await fleet.sample(make_task(), n=4) == undisturbed  # as where a step has no sync
    await learner.update([])
    await fleet.load(await learner.publish(2))
    assert {one.policy_version for one in await fleet.sample(make_task(), n=4)} == {2}
    assert [worker.loaded for worker in workers] == [[0, 0, 2]] * 2
    await fleet.close()


async def test_an_update_goes_on_when_a_worker_died_before_it_could_sleep():
    workers = [FakeWorker(), FakeWorker()]

    async def start_worker(index: int) -> FakeWorker:
        return workers[index]

    fleet = Fleet(start_worker, num_workers=1, sampling=Sampling(), run_seed=7, discard=lambda snapshot: None)
    await fleet.start()
    learner = LearnerInTurns(FakeLearner(), fleet)
    await fleet.load(await learner.publish(0))
    workers[0].kill()
    with pytest.raises(WorkerLost):
        await workers[0].sleep()
    assert (await learner.update([])).metrics["learner/rows"] == 0
    await fleet.close()


@pytest.mark.parametrize(
    ("changes", "device", "sleeps"),
    [
        (["placement=colocated", "engine.kind=hf"], "cpu", True),
        (["placement=colocated", "engine.kind=hf", "publish_every=2"], "cpu", True),
        (["placement=colocated", "engine.kind=hf"], "cuda", True),
        (["placement=colocated", "engine.kind=vllm"], "cuda", True),
        (["placement=colocated", "engine.kind=hf", "max_lag=1"], "cpu", False),  # it samples meanwhile
        (["placement=colocated", "engine.kind=vllm"], "cpu", False),
        (["engine.kind=hf"], "cpu", False),
        (["engine.kind=vllm"], "cuda", False),
    ],
)
def test_engines_sleep_in_lock_step_where_one_place_was_asked_for_and_they_can(
    changes: list[str], device: str, sleeps: bool, caplog: pytest.LogCaptureFixture
):
    changed = config(*changes)
    with caplog.at_level(logging.WARNING):
        assert engines_sleep(changed, device) is sleeps
    is_told = "placement=colocated" in changes and not sleeps and not changed.max_lag
    assert ("vLLM has no sleep mode on a CPU" in caplog.text) == is_told


async def test_the_workers_and_the_learner_of_a_run_are_told(tmp_path: Path):
    told: list[Any] = []

    class Cluster:
        def last_words(self, name: str) -> str:
            return ""

        async def start(self, factory: Any, spec: Any, **options: Any) -> FakeWorker:
            told.append(spec)
            return FakeWorker()

    changed = config("placement=colocated", "engine.kind=hf", "engine.transport=ipc")
    spec = learner_spec(changed, "model", WeightPlacement("cpu"), snapshots=tmp_path)
    assert spec.engines_sleep
    assert spec.transport == "ipc"
    for learner in (spec, None):
        fleet = make_fleet(changed, Cluster(), "model", device="cpu", seats=[Seat("workers", 0)], learner=learner)  # type: ignore[arg-type]
        await fleet.start()
        await fleet.close()
    assert [each.can_sleep for each in told] == [True, False]


@pytest.mark.parametrize(
    ("transport", "kind"), [("shm", FileDelivery), ("adapter", FileDelivery), ("gloo", BroadcastDelivery), ("ipc", LoanDelivery)]
)
def test_each_transport_has_its_delivery(transport: Any, kind: type):
    assert type(make_delivery(config(), transport, FakeLearner())) is kind

"""The configs of configs/objectives, and the quickstart's under other names: each run whole for a few steps, without Ray.

The model is tiny and random, so the reward is one that it gets now and then; what is recorded or demonstrated is the config's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from learner_cases import sharp_model

from grpo.config import RunConfig, load_config
from grpo.learner import Learner, MismatchTooLarge
from grpo.parts import engine_threads, learner_spec, make_fleet, make_probe
from grpo.placement import Seat
from grpo.prepare import fitting
from grpo.probe import MAX_TASKS, ProbedFleet
from grpo.run import Run
from rollout.snapshot import discard
from rollout.tasks import TaskStream, load_tasks
from rollout.transports import WeightPlacement
from rollout.types import Snapshot
from rollout.worker import RolloutWorker, WorkerSpec
from tests.grpo.fake_runs import curve, make_run
from verifiers.service import VerifierService

ROOT = Path(__file__).parents[2]
OBJECTIVES = ROOT / "configs/objectives"
SMALL = (
    "steps=3",
    "groups_per_step=4",
    "group_size=4",
    "tasks.held_out=8",
    "sampling.max_tokens=24",
    "evaluation.every=0",
    "evaluation.num_tasks=4",
    "checkpoints.every=100",
    "engine.kind=hf",
    "device=cpu",
    "model.start_from=",
    "learner.max_mismatch=1e-3",
)
# A reward that random text gets now and then, in place of sums that it never gets right.
LUCKY = ("rewards.sum={luck = {verifier = 'format', options = {pattern = '[\\s\\S]*[0-4q-z][\\s\\S]*'}}}",)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sharp_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=128)


def settings(name: str, *overrides: str, rewards: tuple[str, ...] = LUCKY) -> RunConfig:
    path = OBJECTIVES / f"{name}.toml" if (OBJECTIVES / f"{name}.toml").exists() else ROOT / f"configs/{name}.toml"
    return load_config(path, [*SMALL, *rewards, *overrides])


def small_source(config: RunConfig) -> RunConfig:
    tasks = config.tasks.model_copy(update={"source": config.tasks.source.replace("size=8000", "size=120")})
    return config.model_copy(update={"tasks": tasks})


@contextlib.asynccontextmanager
async def opened(config: RunConfig, folder: Path, model_path: str, **parts: Any):
    """What open_run puts together, of plain objects."""
    config = small_source(config)
    task_set = fitting(load_tasks(config.tasks), config, model_path)
    folder.mkdir(exist_ok=True)
    spec = learner_spec(config, model_path, WeightPlacement("cpu"), snapshots=folder / "snapshots", faults=folder / "faults")
    learner, verifiers = Learner(spec), VerifierService(config.rewards)

    async def start_worker(index: int) -> RolloutWorker:
        return RolloutWorker(WorkerSpec(model_path, config.engine, "cpu"))

    fleet = ProbedFleet(
        start_worker, num_workers=config.engine.num_workers, sampling=config.sampling, run_seed=config.seed, discard=discard
    )
    fleet.probe = make_probe(config, task_set, learner)
    run = make_run(folder, learner, config, model_path=model_path, fleet=fleet, verifiers=verifiers, **parts)
    run = dataclasses.replace(run, task_set=task_set, tasks=TaskStream(task_set.train, seed=config.seed))
    await fleet.start()
    try:
        yield run
    finally:
        run.tracker.close()
        await run.close()
        await fleet.close()
        await verifiers.close()


async def train(run: Run) -> list[dict[str, float]]:
    """The metrics of each step."""
    from grpo.train import train

    await train(run)
    return [line for line in curve(run.folder.path) if "loss/value" in line]


LIVE = [
    ("quickstart", "objective.kl_coef=0.1"),
    ("dapo",),
    ("online_dpo", "model.lora.rank=4"),
    ("online_kto",),
    ("rejection_sft",),
]
MORE_LIVE = [
    *(("quickstart", f"objective.name={name}") for name in ("grpo", "dr_grpo", "gspo", "cispo", "rloo", "reinforce_plus_plus")),
    ("quickstart", "objective.kl_coef=0.1", "objective.kl_in=reward", "learner.reference_on_cpu=true"),
    ("quickstart", "objective.name=reinforce_plus_plus", "objective.kl_coef=0.1"),
    ("online_dpo",),
    ("online_dpo", "objective.name=simpo"),
    ("iterative_dpo", "publish_every=2"),
    ("spin", "publish_every=2"),
    ("spin", "publish_every=1", "model.lora.rank=4"),
]
RECORDED = [
    *(("dpo", f"objective.name={name}") for name in ("dpo", "ipo", "simpo", "orpo", "kto", "sft")),
    ("kto",),
    ("kto", "objective.name=sft"),
]


def told(case: tuple[str, ...]) -> str:
    return " ".join(case)


@pytest.mark.parametrize("case", [*LIVE, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE_LIVE)], ids=told)
async def test_a_config_with_sampled_groups_trains(tmp_path: Path, tiny_model: str, case: tuple[str, ...]):
    async with opened(settings(case[0], *case[1:]), tmp_path, tiny_model) as run:
        steps = await train(run)
    assert len(steps) == 3
    assert all(math.isfinite(value) for step in steps for value in step.values())
    assert any(step["policy/grad_norm"] > 0 for step in steps)
    assert all(step.get("mismatch/abs_mean", 0) < 1e-3 for step in steps if run.config.is_on_policy)
    probed = [step.get("mismatch/probe_abs_mean", math.inf) < 1e-4 for step in steps]
    assert probed == [make_probe(run.config, run.task_set, None) is not None] * 3


@pytest.mark.parametrize("case", RECORDED, ids=told)
async def test_a_config_with_recorded_groups_trains(tmp_path: Path, tiny_model: str, case: tuple[str, ...]):
    async with opened(
        settings(case[0], "steps=6", "learner.learning_rate=3e-3", *case[1:], rewards=()), tmp_path, tiny_model
    ) as run:
        steps = await train(run)
    assert len(steps) == 6
    assert steps[-1]["loss/value"] < steps[0]["loss/value"]
    assert "reward/mean" in steps[0]
    assert not (tmp_path / "rollouts").exists(), "nothing was sampled"


async def test_an_iterate_samples_until_the_next_sync_and_is_the_reference_of_what_follows(tmp_path: Path, tiny_model: str):
    config = settings("iterative_dpo", "steps=4", "publish_every=2", "learner.reference_every=2", "learner.learning_rate=1e-3")
    async with opened(config, tmp_path, tiny_model) as run:
        loads = watch_loads(run)
        steps = await train(run)
    assert loads == [0, 2, 4]
    assert [step["collector/lag_mean"] for step in steps] == [0, 1, 0, 1]
    # The policy begins each iteration as its own reference.
    assert [abs(step["preference/margin"]) < 1e-6 for step in steps] == [True, False, True, False]


async def test_self_play_prefers_demonstrations_to_samples_of_its_last_iterate(tmp_path: Path, tiny_model: str):
    config = settings("spin", "steps=4", "publish_every=2", "learner.learning_rate=1e-3")
    async with opened(config, tmp_path, tiny_model) as run:
        loads = watch_loads(run)
        steps = await train(run)
    assert loads == [0, 2, 4]
    assert [abs(step["preference/margin"]) < 1e-6 for step in steps] == [True, False, True, False]
    assert steps[1]["preference/margin"] > 0
    assert steps[0]["learner/rows"] == 4 * 4 * 2  # four tasks, four samples each, a demonstration beside every one


def watch_loads(run: Run) -> list[int]:
    loads, load = [], run.fleet.load

    async def watched(snapshot: Snapshot) -> None:
        loads.append(snapshot.version)
        await load(snapshot)

    run.fleet.load = watched  # type: ignore[method-assign]
    return loads


# The guard after a sync


@pytest.mark.parametrize("overrides", [("max_lag=1",), ("publish_every=2",)])
async def test_a_sync_that_changes_nothing_is_noticed_where_groups_may_be_old(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
):
    class Forgetful(RolloutWorker):
        """Loads the first snapshot again and again, under the newest version."""

        first: Snapshot | None = None

        async def load(self, snapshot: Snapshot) -> None:
            self.first = self.first or snapshot
            await super().load(dataclasses.replace(self.first, version=snapshot.version))

    monkeypatch.setitem(globals(), "RolloutWorker", Forgetful)
    config = settings("quickstart", "steps=4", "learner.learning_rate=1e-2", *overrides)
    async with opened(config, tmp_path, tiny_model) as run:
        run.fleet._discard = lambda snapshot: None
        with pytest.raises(
            MismatchTooLarge, match=r"after the sync of version \d engine and learner differ by .* on 8 fixed prompts"
        ):
            await train(run)


async def test_a_worker_that_keeps_an_older_version_is_noticed(tmp_path: Path, tiny_model: str):
    async with opened(settings("quickstart", "max_lag=1"), tmp_path, tiny_model) as run:
        await run.fleet.load(await run.learner.publish(0))
        assert run.fleet.probe is not None
        with pytest.raises(MismatchTooLarge, match="after the sync of version 3 a worker still samples from version 0"):
            await run.fleet.probe.check(run.fleet, dataclasses.replace(await run.learner.publish(0), version=3))


@pytest.mark.parametrize(
    ("case", "is_probed"),
    [
        (("quickstart",), False),  # each step compares its own groups
        (("quickstart", "max_lag=1"), True),
        (("iterative_dpo",), True),
        (("spin", "publish_every=1"), True),  # demonstrations have no log-probabilities to compare
        (("dpo",), False),  # nothing sampled is learnt from
    ],
    ids=str,
)
def test_runs_are_probed_where_a_lost_sync_would_not_show(tmp_path: Path, case: tuple[str, ...], is_probed: bool):
    config = small_source(settings(*case))
    assert (make_probe(config, load_tasks(config.tasks), None) is not None) == is_probed


async def test_a_probe_has_room_beside_a_full_batch(tiny_model: str):
    started: list[WorkerSpec] = []

    class Cluster:
        async def start(self, factory: Any, spec: WorkerSpec, **_: Any) -> RolloutWorker:
            started.append(spec)
            return RolloutWorker(spec)

    for max_lag in (0, 1):
        config = settings("quickstart", f"max_lag={max_lag}", "engine.kind=hf", "engine.max_num_seqs=16")
        fleet = make_fleet(config, Cluster(), tiny_model, device="cpu", seats=[Seat("workers", 0)])  # type: ignore[arg-type]
        await fleet.start()
        await fleet.close()
    assert [spec.engine.max_num_seqs for spec in started] == [16, 16 + MAX_TASKS]


@pytest.mark.parametrize(
    ("overrides", "num_threads"),
    [
        (("engine.kind=hf",), 6),
        (("engine.kind=hf", "engine.num_workers=4"), 1),
        (("engine.kind=hf", "max_lag=1"), 1),  # beside a learner that has the others
        (("engine.kind=vllm",), 1),
    ],
    ids=str,
)
def test_an_engine_has_the_cores_that_the_learner_leaves_idle(
    monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], num_threads: int
):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    assert engine_threads(settings("quickstart", *overrides)) == num_threads

"""The loop run whole, without Ray: in order, resumed, stopped, with lag, on recorded groups, and with a sync that goes missing."""

from __future__ import annotations

import dataclasses
import inspect
import io
import math
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest
from rich.console import Console

from grpo.checkpoint import Checkpoints
from grpo.config import CheckpointConfig, EvaluationConfig, LearnerConfig, RunConfig
from grpo.folder import RunFolder
from grpo.learner import Learner, MismatchTooLarge
from grpo.objectives import Sft
from grpo.run import Run, learner_spec
from grpo.state import RunState
from grpo.tiny_model import make_tiny_model
from grpo.tracking import RolloutStore, read_metrics
from grpo.train import train
from rollout.engine import EngineConfig
from rollout.errors import NoSignal
from rollout.fleet import Fleet
from rollout.sampling import Sampling
from rollout.snapshot import discard
from rollout.tasks import TasksConfig, TaskSet, TaskStream
from rollout.types import Completion, Snapshot
from rollout.worker import RolloutWorker, WorkerSpec
from tests.fakes import FakeLearner, FakeVerifiers, FakeWorker, is_right, make_tasks
from verifiers.types import Task

TASKS = make_tasks(24)
TASK_SET = TaskSet(TASKS[4:], TASKS[:4], {task.id: f"\\boxed{{{task.reference}}}" for task in TASKS[4:]}, 0)


def config(**changes: Any) -> RunConfig:
    values = {
        "steps": 6,
        "groups_per_step": 3,
        "group_size": 4,
        "tasks": TasksConfig(source="unused.jsonl"),
        "sampling": Sampling(max_tokens=12),
        "learner": LearnerConfig(learning_rate=1e-2),
        "evaluation": EvaluationConfig(every=3),
        "checkpoints": CheckpointConfig(every=2, keep=9),
    }
    return RunConfig(**values | changes)


def make_run(
    folder: Path, learner: Any, settings: RunConfig, *, worker: Any = FakeWorker, model_path: str = "", **parts: Any
) -> Run:
    async def start_worker(index: int) -> Any:
        return worker()

    place = RunFolder(folder)
    place.path.mkdir(exist_ok=True)
    return Run(
        config=settings,
        folder=place,
        task_set=TASK_SET,
        tasks=TaskStream(TASK_SET.train, seed=settings.seed),
        learner=learner,
        checkpoints=Checkpoints(place.checkpoints, keep=settings.checkpoints.keep),
        rollouts=RolloutStore(place.rollouts, every=1),
        model_path=model_path,
        console=Console(file=io.StringIO()),
        title="test",
        **{
            "fleet": Fleet(
                start_worker,
                num_workers=settings.engine.num_workers,
                sampling=settings.sampling,
                run_seed=settings.seed,
                discard=discard,
            ),
            "verifiers": FakeVerifiers(is_right),
        }
        | parts,
    )


async def trained(run: Run) -> RunState:
    await run.fleet.start()
    try:
        return await train(run)
    finally:
        run.tracker.close()
        await run.fleet.close()


def curve(folder: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl without what a clock says."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(("time/", "speed/"))} for line in lines]


def steps_with(folder: Path, name: str) -> list[int]:
    return [line["step"] for line in curve(folder) if name in line]


def test_the_loop_is_meant_to_be_read_whole():
    assert len(inspect.getsource(train).splitlines()) < 50


# What happens when


async def test_every_step_learns_from_groups_of_the_policy_before_it(tmp_path: Path):
    learner = FakeLearner()
    state = await trained(make_run(tmp_path, learner, config()))
    assert state.step == 6
    assert learner.published == [0, 1, 2, 3, 4, 5, 6]
    rows = pyarrow.dataset.dataset(tmp_path / "rollouts").to_table().to_pylist()
    assert {(row["step"], row["policy_version"]) for row in rows} == {(step, step - 1) for step in range(1, 7)}
    assert len(rows) == 6 * 3 * 4


async def test_evaluations_and_checkpoints_come_when_they_are_due(tmp_path: Path):
    state = await trained(make_run(tmp_path, FakeLearner(), config(steps=7)))
    assert steps_with(tmp_path, "eval/sampled_accuracy") == [0, 3, 6, 7]
    assert steps_with(tmp_path, "reward/mean") == [1, 2, 3, 4, 5, 6, 7]
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [f"step-{i:06d}" for i in (2, 4, 6, 7)]
    assert [evaluation.step for evaluation in state.evaluations] == [0, 3, 6, 7]


async def test_a_run_ends_when_the_accuracy_to_stop_at_is_reached(tmp_path: Path):
    settings = config(steps=50, evaluation=EvaluationConfig(every=1, stop_at=0.99))
    learner = FakeLearner()
    run = make_run(tmp_path, learner, settings, verifiers=FakeVerifiers(lambda task, text: float(len(learner.published) > 3)))
    state = await trained(run)
    assert state.step == 3
    assert Checkpoints(tmp_path / "checkpoints", keep=1).latest() == state


async def test_the_number_of_workers_changes_nothing(tmp_path: Path):
    weights = []
    for num_workers in (1, 3):
        learner = FakeLearner()
        await trained(make_run(tmp_path / str(num_workers), learner, config(engine=EngineConfig(num_workers=num_workers))))
        weights.append(learner.weight)
    assert weights[0] == weights[1]
    assert curve(tmp_path / "1") == curve(tmp_path / "3")


async def test_with_lag_the_same_loop_learns_from_older_groups_within_bounds(tmp_path: Path):
    await trained(make_run(tmp_path, FakeLearner(), config(max_lag=1)))
    lags = [line["collector/lag_mean"] for line in curve(tmp_path) if "collector/lag_mean" in line]
    assert len(lags) == 6
    assert max(lags) == 1
    state = Checkpoints(tmp_path / "checkpoints", keep=1).latest()
    assert state is not None
    assert len(state.cursor.unfinished) == 3, "the groups that ran ahead were not learnt from"


# Resuming


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("model"), seed=0, hidden_size=32, num_layers=1))


class Crash(Exception):
    """What kills the process in the middle of a step."""


def real_learner(folder: Path, settings: RunConfig, model_path: str, *, crash_at: int | None = None, **changes: Any) -> Any:
    """A tiny model with AdamW. `crash_at` is the update that does not come back."""

    class Crashing(Learner):
        num_updates = 0

        async def update(self, examples: Any) -> Any:
            self.num_updates += 1
            if self.num_updates == crash_at:
                raise Crash
            return await super().update(examples)

    spec = learner_spec(settings, model_path, device="cpu", snapshots=folder / "snapshots")
    return Crashing(dataclasses.replace(spec, **changes))


async def fingerprint(learner: Any) -> str:
    return (await learner.publish(99)).fingerprint


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "recorded"])
async def test_a_run_that_crashed_and_resumed_equals_one_that_did_not_to_the_bit(tmp_path: Path, model_path: str, is_live: bool):
    """Its fourth update never comes back: it goes on from the checkpoint of step 2, through AdamW's moments and a schedule."""
    recorded = {"tasks": TasksConfig(source="unused.jsonl", completion="{x}"), "objective": Sft()}
    settings = config(learner=LearnerConfig(learning_rate=1e-2, warmup_steps=2, schedule="cosine"), **({} if is_live else recorded))
    steady = real_learner(tmp_path, settings, model_path, max_mismatch=None)
    one = await trained(make_run(tmp_path / "one", steady, settings, model_path=model_path))

    crashing = real_learner(tmp_path, settings, model_path, max_mismatch=None, crash_at=4)
    with pytest.raises(Crash):
        await trained(make_run(tmp_path / "two", crashing, settings, model_path=model_path))
    resumed = real_learner(tmp_path, settings, model_path, max_mismatch=None)
    assert await fingerprint(resumed) != await fingerprint(steady)
    two = await trained(make_run(tmp_path / "two", resumed, settings, model_path=model_path))

    assert curve(tmp_path / "one") == curve(tmp_path / "two")
    assert await fingerprint(steady) == await fingerprint(resumed)
    assert one.cursor == two.cursor
    assert [e.model_copy(update={"seconds": 0}) for e in one.evaluations] == [
        e.model_copy(update={"seconds": 0}) for e in two.evaluations
    ]


async def test_a_requested_stop_ends_after_the_step_with_a_checkpoint(tmp_path: Path):
    learner = FakeLearner()
    run = make_run(tmp_path, learner, config(steps=20, checkpoints=CheckpointConfig(every=20)))
    update = learner.update

    async def stopping(examples: Any) -> Any:
        if len(learner.published) == 3:
            run.request_stop()
        return await update(examples)

    learner.update = stopping  # type: ignore[method-assign]
    state = await trained(run)
    assert state.step == 3
    assert Checkpoints(tmp_path / "checkpoints", keep=1).latest() == state


async def test_a_resumed_run_says_from_where(tmp_path: Path):
    await trained(make_run(tmp_path, FakeLearner(), config(steps=4)))
    run = make_run(tmp_path, FakeLearner(), config(steps=6))
    assert (await trained(run)).step == 6
    assert isinstance(run.console.file, io.StringIO)
    assert "test: resuming from step 4 of 6" in run.console.file.getvalue()


async def test_demonstrations_are_learnt(tmp_path: Path, model_path: str):
    settings = config(steps=25, groups_per_step=8, tasks=TasksConfig(source="x", completion="{x}"), objective=Sft())
    learner = real_learner(tmp_path, settings, model_path)
    await trained(make_run(tmp_path, learner, settings, model_path=model_path))
    losses = [line["loss/value"] for line in curve(tmp_path) if "loss/value" in line]
    assert losses[0] > 3
    assert losses[-1] < losses[0] / 2
    assert not (tmp_path / "rollouts").exists(), "nothing was sampled"


# A sync that goes missing


async def test_weights_that_are_never_pushed_are_noticed_in_the_next_step(tmp_path: Path):
    run = make_run(tmp_path, FakeLearner(), config())
    load, loads = run.fleet.load, []

    async def first_only(snapshot: Snapshot) -> None:
        if not loads:
            await load(snapshot)
        loads.append(snapshot.version)

    run.fleet.load = first_only  # type: ignore[method-assign]
    with pytest.raises(NoSignal, match=r"step 2: .* stale\)\. Their weights were older than max_lag allows"):
        await trained(run)
    assert loads == [0, 1]


class Forgetful(RolloutWorker):
    """Says it has loaded the weights of every snapshot, and keeps those of the first."""

    first: Snapshot | None = None
    version = 0

    async def load(self, snapshot: Snapshot) -> None:
        self.version = snapshot.version
        if self.first is None:
            self.first = snapshot
            await super().load(snapshot)

    async def sample(self, task: Task, sampling: Sampling, *, n: int, seed: int) -> tuple[Completion, ...]:
        completions = await super().sample(task, sampling, n=n, seed=seed)
        return tuple(dataclasses.replace(completion, policy_version=self.version) for completion in completions)


@pytest.mark.parametrize("is_loaded", [True, False], ids=["loaded", "not loaded"])
async def test_an_engine_that_keeps_old_weights_is_noticed_by_its_log_probabilities(
    tmp_path: Path, model_path: str, is_loaded: bool
):
    engine = EngineConfig(kind="hf", max_model_len=64)
    settings = config(
        steps=3, engine=engine, learner=LearnerConfig(learning_rate=1e-2, max_mismatch=1e-3), evaluation=EvaluationConfig(every=0)
    )
    run = make_run(
        tmp_path,
        real_learner(tmp_path, settings, model_path),
        settings,
        worker=lambda: (RolloutWorker if is_loaded else Forgetful)(WorkerSpec(model_path, engine, "cpu")),
        verifiers=FakeVerifiers(lambda task, text: len(text) % 5 / 4),
        model_path=model_path,
    )
    if not is_loaded:
        with pytest.raises(MismatchTooLarge, match=r"more than learner\.max_mismatch = 0\.001"):
            await trained(run)
        assert steps_with(tmp_path, "loss/value") == [1]
        return
    await trained(run)
    mismatches = [line["mismatch/abs_mean"] for line in curve(tmp_path) if "mismatch/abs_mean" in line]
    assert len(mismatches) == 3
    assert max(mismatches) < 1e-5  # float32 on both sides
    assert all(math.isfinite(line["policy/grad_norm"]) and line["policy/grad_norm"] > 0 for line in curve(tmp_path)[1:-1])

"""The loop run whole, without Ray: what happens when, with lag, on recorded groups, and with a sync that goes missing."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import AsyncGenerator
from pathlib import Path

import pyarrow.dataset
import pytest

from grpo.checkpoint import Checkpoints
from grpo.config import EvaluationConfig
from grpo.learner import MismatchTooLarge
from grpo.learner_config import LearnerConfig
from grpo.objectives import Sft
from grpo.tiny_model import make_tiny_model
from grpo.train import train
from rollout.engine import EngineConfig
from rollout.errors import NoSignal
from rollout.fleet import Publish
from rollout.sampling import Sampling
from rollout.tasks import TasksConfig
from rollout.types import Completion, Snapshot, VersionSpan
from rollout.worker import RolloutWorker, WorkerSpec
from tests.fakes import FakeLearner, FakeVerifiers
from tests.grpo.fake_runs import config, curve, make_run, real_learner, steps_with, trained
from verifiers.types import Task


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("model"), seed=0, hidden_size=32, num_layers=1))


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


@pytest.mark.parametrize(("publish", "turn"), [("wait", None), ("wait", 5), ("inflight", None)])
async def test_weights_change_only_where_they_may(tmp_path: Path, model_path: str, publish: Publish, turn: int | None):
    engine = EngineConfig(kind="hf", max_model_len=64)
    sampling = Sampling(max_tokens=40, tokens_per_turn=turn)
    settings = config(steps=5, max_lag=1, publish=publish, sampling=sampling, engine=engine, evaluation=EvaluationConfig(every=0))
    learner = real_learner(tmp_path, settings, model_path)
    verifiers = FakeVerifiers(lambda task, text: len(text) % 5 / 4)
    worker = lambda: RolloutWorker(WorkerSpec(model_path, engine, "cpu"))  # noqa: E731
    await trained(make_run(tmp_path, learner, settings, worker=worker, verifiers=verifiers, model_path=model_path))

    rows = pyarrow.dataset.dataset(tmp_path / "rollouts").to_table().to_pylist()
    assert all(sum(span["num_tokens"] for span in row["version_spans"]) == len(row["token_ids"]) for row in rows)
    crossing = [row["version_spans"] for row in rows if len(row["version_spans"]) > 1]
    share = sum(line.get("collector/crossed_fraction", 0) for line in curve(tmp_path)) / 5
    assert share == pytest.approx(len(crossing) / len(rows))
    if publish == "wait":
        assert all(turn and span["num_tokens"] % turn == 0 for spans in crossing for span in spans[:-1])


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

    async def stream(self, task: Task, sampling: Sampling, *, n: int, seed: int) -> AsyncGenerator[tuple[Completion, ...]]:
        async for some in super().stream(task, sampling, n=n, seed=seed):
            yield tuple(dataclasses.replace(completion, version_spans=(VersionSpan(self.version, 1),)) for completion in some)


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

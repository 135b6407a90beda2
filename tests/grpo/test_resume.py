"""Stopped, crashed and resumed: the run is the one that was never stopped."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from grpo.checkpoint import Checkpoints
from grpo.config import CheckpointConfig, EvaluationConfig
from grpo.folder import code_fingerprint
from grpo.learner_config import LearnerConfig
from grpo.objectives import Grpo, Sft
from grpo.tiny_model import make_tiny_model
from rollout.judged import from_json
from rollout.tasks import TasksConfig
from rollout.types import Completion
from tests.fakes import FakeLearner, FakeVerifiers, is_right
from tests.grpo.fake_runs import Crash, config, curve, fingerprint, make_run, real_learner, trained
from verifiers.types import Task, Verdict


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("model"), seed=0, hidden_size=32, num_layers=1))


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "recorded"])
async def test_a_run_that_crashed_and_resumed_equals_one_that_did_not_to_the_bit(tmp_path: Path, model_path: str, is_live: bool):
    """Its fourth update never comes back: it goes on from the checkpoint of step 2, through AdamW's moments and a schedule."""
    recorded = {"tasks": TasksConfig(source="unused.jsonl", completion="{x}"), "objective": Sft()}
    live = {"objective": Grpo(sequence_bounds=(0, math.inf))}  # the fake worker's log-probabilities are those of no policy
    schedule = LearnerConfig(learning_rate=1e-2, warmup_steps=2, schedule="cosine")
    settings = config(learner=schedule, **(live if is_live else recorded))
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


class Counting(FakeVerifiers):
    """Says how many completions it has judged since it was asked last."""

    count = 0

    async def verify(self, task: Task, completions: Sequence[Completion]) -> tuple[Verdict, ...]:
        self.count += len(completions)
        return await super().verify(task, completions)

    async def metrics(self) -> dict[str, float]:
        judged, self.count = self.count, 0
        return {"verify/judged": judged}


async def test_the_counts_of_a_step_are_the_same_after_a_resume_that_follows_an_evaluation(tmp_path: Path):
    settings = config(evaluation=EvaluationConfig(every=2))
    await trained(make_run(tmp_path / "one", FakeLearner(), settings, verifiers=Counting(is_right)))
    for steps in (4, 6):
        shorter = settings.model_copy(update={"steps": steps})
        await trained(make_run(tmp_path / "two", FakeLearner(), shorter, verifiers=Counting(is_right)))
    assert curve(tmp_path / "one") == curve(tmp_path / "two")
    assert [line["verify/judged"] for line in curve(tmp_path / "one") if "verify/judged" in line] == [12] * 6


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


async def test_a_checkpoint_holds_finished_groups_the_hashes_and_the_wandb_run_and_other_code_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = config(steps=4, max_lag=1)
    first = make_run(tmp_path, FakeLearner(), settings)
    state = await trained(first)
    assert state.config_hash == settings.fingerprint
    assert state.code_hash == code_fingerprint()
    newest = first.checkpoints.paths()[-1]
    kept = from_json((newest / "groups.json").read_text())
    assert kept
    assert set(kept) <= set(state.cursor.unfinished)

    monkeypatch.setattr("grpo.run.code_fingerprint", lambda: "other")
    run = make_run(tmp_path, FakeLearner(), config(steps=5, max_lag=1))
    assert (await trained(run)).step == 5
    assert run.checkpoints.collected == kept
    assert isinstance(run.console.file, io.StringIO)
    assert f"test: resumed with other code, {state.code_hash} -> other" in run.console.file.getvalue()

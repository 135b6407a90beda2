"""Held-out accuracy, and what it does not count."""

from __future__ import annotations

import pytest

from grpo.evaluate import accuracy, evaluate
from grpo.state import Evaluation, RunState
from rollout.fleet import Fleet
from rollout.sampling import Sampling
from rollout.tasks import Cursor
from sandbox.errors import SystemFault
from tests.fakes import FakeVerifiers, FakeWorker, is_right, make_snapshot, make_tasks, make_verdict
from verifiers.types import Task


async def evaluated(*, version: int = 0, step: int = 0, reward=is_right, worker: FakeWorker | None = None) -> Evaluation:
    worker = worker or FakeWorker()

    async def start(index: int) -> FakeWorker:
        return worker

    fleet = Fleet(start, num_workers=1, sampling=Sampling(), run_seed=0, discard=lambda snapshot: None)
    await fleet.start()
    await fleet.load(make_snapshot(version))
    return await evaluate(
        make_tasks(32), fleet=fleet, verifiers=FakeVerifiers(reward), sampling=Sampling(temperature=0.7), step=step, run_seed=0
    )


async def test_each_task_gets_one_sampled_and_one_greedy_completion():
    worker = FakeWorker()
    evaluation = await evaluated(step=5, worker=worker)
    assert [n for _, n, _ in worker.sampled] == [1] * 64
    assert (evaluation.step, evaluation.num_tasks) == (5, 32)
    assert 0 < evaluation.sampled_accuracy < 1
    assert evaluation.sampled_accuracy != evaluation.greedy_accuracy
    assert evaluation.length_mean > 0


async def test_the_seeds_are_the_same_at_every_step():
    """What changes from one evaluation to the next is the policy, not the luck."""
    first, second = FakeWorker(), FakeWorker()
    await evaluated(step=1, version=1, worker=first)
    await evaluated(step=2, version=2, worker=second)
    assert first.sampled == second.sampled


async def test_equal_weights_give_equal_accuracies():
    one, other = await evaluated(), await evaluated()
    assert one.model_copy(update={"seconds": 0}) == other.model_copy(update={"seconds": 0})


async def test_unscored_completions_are_left_out_and_told(caplog: pytest.LogCaptureFixture):
    def half(task: Task, text: str) -> float | None:
        return 1.0 if int(task.id[1:]) % 2 else None

    assert (await evaluated(reward=half)).sampled_accuracy == 1.0
    assert caplog.records[0].getMessage() == (
        "16 of 32 held-out completions were not scored. The first cause: fake: the judge is down"
    )


async def test_when_nothing_could_be_scored_the_cause_is_told():
    with pytest.raises(SystemFault) as caught:
        await evaluated(reward=lambda task, text: None)
    assert str(caught.value) == ("none of the 32 held-out completions could be scored. The first cause: fake: the judge is down")


@pytest.mark.parametrize(
    ("rewards", "expected"), [([1, 0, 0, 0], 0.25), ([1, None, 0, None], 0.5), ([0.5, 1], 0.5), ([None, 0], 0.0)]
)
def test_accuracy_is_the_share_of_correct_among_the_scored(rewards: list[float | None], expected: float):
    assert accuracy([make_verdict(reward) for reward in rewards]) == expected


def measured(step: int, value: float) -> Evaluation:
    return Evaluation(step=step, num_tasks=4, sampled_accuracy=value, greedy_accuracy=value, length_mean=1.0, seconds=0.0)


def test_a_state_knows_whether_its_weights_were_evaluated():
    state = RunState().evaluated(measured(0, 0.25))
    assert state.is_evaluated
    state = state.advance(Cursor(4), elapsed_s=1.0)
    assert (state.step, state.cursor, state.is_evaluated) == (1, Cursor(4), False)
    state = state.evaluated(measured(1, 0.5)).evaluated(measured(1, 0.75))
    assert [(e.step, e.sampled_accuracy) for e in state.evaluations] == [(0, 0.25), (1, 0.75)]
    assert RunState.model_validate_json(state.model_dump_json()) == state

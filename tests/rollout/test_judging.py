"""Completions are judged as they finish; the group stands in order all the same, and nothing is left under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from rollout.judging import judged_group
from rollout.types import Completion
from tests.fakes import make_completion, make_task, make_verdict
from verifiers.types import Task, Verdict

TASK = make_task()


async def streamed(*batches: tuple[int, ...], failing: Exception | None = None) -> AsyncGenerator[tuple[Completion, ...]]:
    for batch in batches:
        yield tuple(make_completion(index, text=str(index)) for index in batch)
        await asyncio.sleep(0.01)
    if failing is not None:
        raise failing


class Judge:
    """The reward of completion i is i/10. Judging takes `seconds`; `bad` is one that cannot be judged."""

    def __init__(self, *, seconds: float = 0.0, bad: str = "") -> None:
        self._seconds, self._bad = seconds, bad
        self.asked: list[list[str]] = []
        self.under_way = 0

    async def __call__(self, task: Task, completions: Sequence[Completion]) -> tuple[Verdict, ...]:
        self.asked.append([completion.text for completion in completions])
        self.under_way += 1
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self.under_way -= 1
        if any(completion.text == self._bad for completion in completions):
            raise RuntimeError("no verdict")
        return tuple(make_verdict(int(completion.text) / 10) for completion in completions)


async def test_verdicts_belong_to_their_completions_in_order_of_the_indices():
    group = await judged_group(TASK, streamed((3,), (0, 2), (1,)), Judge(seconds=0.02))
    assert [completion.index for completion in group.completions] == [0, 1, 2, 3]
    assert [verdict.reward for verdict in group.verdicts] == [0.0, 0.1, 0.2, 0.3]


async def test_what_is_finished_is_judged_while_the_rest_is_sampled():
    judge, went_on = Judge(), asyncio.Event()

    async def slowly() -> AsyncGenerator[tuple[Completion, ...]]:
        yield (make_completion(0, text="0"),)
        await went_on.wait()
        yield (make_completion(1, text="1"),)

    judged = asyncio.create_task(judged_group(TASK, slowly(), judge))
    await asyncio.sleep(0.01)
    assert judge.asked == [["0"]]
    went_on.set()
    assert len((await judged).verdicts) == 2


@pytest.mark.parametrize(
    ("stream", "judge", "message"),
    [
        (streamed((0,), (1,), failing=ValueError("no worker")), Judge(seconds=60), "no worker"),
        (streamed((0,), (1,)), Judge(bad="1"), "no verdict"),
    ],
    ids=["sampling", "judging"],
)
async def test_a_failure_is_raised_as_it_is_and_nothing_goes_on(stream: AsyncGenerator, judge: Judge, message: str):
    with pytest.raises((ValueError, RuntimeError), match=message):
        await judged_group(TASK, stream, judge)
    assert judge.under_way == 0


async def test_cancelling_ends_the_stream_and_the_judging():
    ended, judge = asyncio.Event(), Judge(seconds=60)

    async def endless() -> AsyncGenerator[tuple[Completion, ...]]:
        try:
            yield (make_completion(0),)
            await asyncio.sleep(60)
        finally:
            ended.set()

    judged = asyncio.create_task(judged_group(TASK, endless(), judge))
    await asyncio.sleep(0.01)
    judged.cancel()
    with pytest.raises(asyncio.CancelledError):
        await judged
    assert ended.is_set()
    assert judge.under_way == 0

"""Finished groups that wait in a checkpoint come back as they were."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from rollout.collector import Collector
from rollout.judged import Judged, from_json, to_json
from rollout.tasks import Cursor, TaskStream
from rollout.types import Completion, Group, VersionSpan
from tests.fakes import make_group, make_tasks
from verifiers.types import Task, Verdict, infra, partial

numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec=None))  # lone surrogates among them


@given(texts, st.lists(numbers, max_size=4), st.one_of(st.none(), st.lists(numbers, max_size=4)), st.floats(0, 1))
def test_whatever_a_group_holds_comes_back_to_the_bit(text: str, seconds: list[float], logprobs: list[float] | None, value: float):
    behavior = None if logprobs is None else tuple(logprobs)
    spans = (VersionSpan(3, 2), VersionSpan(4, 1)) if logprobs else ()
    completion = Completion(1, (5, 6), (7, 8), text, "length", behavior, spans, seed=2**62 - 1)
    scored = Verdict(value, False, (partial(value, text, text),))
    unscored = Verdict(None, False, (infra(text),), cause=text)
    judged = {7: Judged((completion, completion), (scored, unscored)), 12: Judged((), ())}
    assert from_json(to_json(judged)) == judged


def collector(tasks: TaskStream, sampled: list[str], *, kept: dict[int, Judged] | None = None, hold: asyncio.Event) -> Collector:
    async def rollout(task: Task) -> Group:
        sampled.append(task.id)
        if len(sampled) > 4:
            await hold.wait()
        return make_group([1, 0], task=task)

    return Collector(rollout, tasks, max_lag=2, kept=kept)


async def test_with_lag_a_resumed_run_samples_what_was_under_way_again_and_keeps_what_was_finished():
    """Two groups are taken, four more are begun; two of those are done when the checkpoint is written."""
    all_tasks, sampled = make_tasks(20), []
    stream, hold = TaskStream(all_tasks, seed=0), asyncio.Event()
    first = collector(stream, sampled, hold=hold)
    taken = await first.take(2, keep=lambda group: True, version=0)
    await asyncio.sleep(0.01)
    cursor, kept = stream.cursor, from_json(to_json(first.finished()))
    await first.close()
    assert (len(cursor.unfinished), len(kept)) == (4, 2)
    assert set(kept) < set(cursor.unfinished)

    resumed, again = TaskStream(all_tasks, seed=0), []
    resumed.rewind(Cursor(*cursor))
    second = collector(resumed, again, kept=kept, hold=hold)
    hold.set()
    next_taken = await second.take(2, keep=lambda group: True, version=1)
    assert [group.task.id for group in next_taken] == sampled[2:4]
    assert again[:2] == sampled[4:6]
    assert not {group.task.id for group in taken} & {*again, *(group.task.id for group in next_taken)}
    await second.close()

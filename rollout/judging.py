"""From a task to a group: each completion is judged as soon as it is finished, while others are still being sampled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

from rollout.types import Completion, Group
from rollout.waiting import all_of
from verifiers.types import Task, Verdict

Verify = Callable[[Task, Sequence[Completion]], Coroutine[Any, Any, Sequence[Verdict]]]


async def judged_group(task: Task, finished: AsyncGenerator[tuple[Completion, ...]], verify: Verify) -> Group:
    """The group of a task, in order of the completions' indices, whatever the order in which they finish.

    The first failure, of sampling or of judging, is raised as it is once all that was under way has ended.
    """
    completions: list[Completion] = []
    judging: list[asyncio.Task[Sequence[Verdict]]] = []
    try:
        async with aclosing(finished):
            async for some in finished:
                completions += some
                judging.append(asyncio.create_task(verify(task, some)))
        verdicts = [verdict for some in await all_of(judging) for verdict in some]
    finally:
        for judged in judging:
            judged.cancel()
        await asyncio.gather(*judging, return_exceptions=True)
    order = sorted(range(len(completions)), key=lambda i: completions[i].index)
    return Group(task, tuple(completions[i] for i in order), tuple(verdicts[i] for i in order))

"""Which service judges what, and what becomes of the work of one that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.fakes import make_completion, make_task, make_tasks, make_verdict
from verifiers.service import Text
from verifiers.service_pool import ServiceLost, ServicePool
from verifiers.types import Task, Verdict

COMPLETIONS = [make_completion(i, text=text) for i, text in enumerate("abca")]


@dataclass
class FakeService:
    """Finds that only "a" is right. Dies under a task with one of the ids in `deadly`; then every call is lost."""

    deadly: set[str] = field(default_factory=set)
    hold: asyncio.Event | None = None
    judged: list[str] = field(default_factory=list)
    is_dead: bool = False
    is_closed: bool = False

    async def judge(self, task: Task, texts: Sequence[Text]) -> tuple[Verdict, ...]:
        if self.hold is not None:
            await self.hold.wait()
        self.is_dead = self.is_dead or task.id in self.deadly
        self._check()
        self.judged.append(task.id)
        return tuple(make_verdict(float(text.text == "a")) for text in texts)

    async def metrics(self) -> dict[str, float]:
        self._check()
        return {"verify/math_correct": 3, "verify/math_p50_s": len(self.judged) / 10}

    async def close(self) -> None:
        self.is_closed = True

    def _check(self) -> None:
        if self.is_dead:
            raise ServiceLost("its process is gone")


class Started:
    def __init__(self, *services: FakeService) -> None:
        self._next = list(services)
        self.services: list[FakeService] = []
        self.indices: list[int] = []

    async def __call__(self, index: int) -> FakeService:
        await asyncio.sleep(0)
        self.services.append(self._next.pop(0) if self._next else FakeService())
        self.indices.append(index)
        return self.services[-1]

    async def pool(self, num_services: int, **options: int) -> ServicePool:
        pool = ServicePool(self, num_services=num_services, **options)
        await pool.start()
        return pool


def rewards(verdicts: Sequence[Verdict]) -> list[float | None]:
    return [verdict.reward for verdict in verdicts]


async def test_the_verdicts_are_those_of_a_service_in_order():
    pool = await Started().pool(2)
    assert rewards(await pool.verify(make_task(), COMPLETIONS)) == [1.0, 0.0, 0.0, 1.0]


async def test_a_group_goes_where_the_fewest_completions_wait():
    hold = asyncio.Event()
    started = Started(FakeService(hold=hold), FakeService(hold=hold))
    pool = await started.pool(2)
    waiting = []
    for task, count in zip(make_tasks(4), (4, 1, 2, 1), strict=True):
        waiting.append(asyncio.create_task(pool.verify(task, COMPLETIONS[:count])))
        await asyncio.sleep(0.01)
    hold.set()
    await asyncio.gather(*waiting)
    assert [service.judged for service in started.services] == [["t0"], ["t1", "t2", "t3"]]


async def test_what_a_dead_service_had_is_judged_by_another_and_it_is_replaced():
    hold = asyncio.Event()
    started = Started(FakeService(hold=hold), FakeService())
    pool = await started.pool(2)
    waiting = [asyncio.create_task(pool.verify(task, COMPLETIONS)) for task in make_tasks(6)]
    await asyncio.sleep(0.01)
    started.services[0].is_dead = True
    hold.set()
    assert [rewards(verdicts) for verdicts in await asyncio.gather(*waiting)] == [[1.0, 0.0, 0.0, 1.0]] * 6
    assert started.indices == [0, 1, 0], "one replacement, however many calls were lost"
    assert started.services[0].is_closed
    assert (await pool.metrics())["verify/lost_services"] == 1


async def test_what_kills_every_service_is_unscored_and_others_are_judged():
    started = Started(*(FakeService(deadly={"t1"}) for _ in range(10)))
    pool = await started.pool(2, max_losses=3)
    good, bad = await asyncio.gather(*(pool.verify(task, COMPLETIONS) for task in make_tasks(2)))
    assert rewards(good) == [1.0, 0.0, 0.0, 1.0]
    assert rewards(bad) == [None] * 4
    assert "3 verifier services died while they judged task t1, the last so: its process is gone" in str(bad[0].cause)
    assert len(started.services) == 2 + 3


async def test_counts_are_added_and_seconds_are_of_the_slowest():
    started = Started()
    pool = await started.pool(2)
    for task in make_tasks(3):
        await pool.verify(task, COMPLETIONS)
    assert await pool.metrics() == {"verify/math_correct": 6, "verify/math_p50_s": 0.3, "verify/lost_services": 0}
    started.services[0].is_dead = True
    assert (await pool.metrics())["verify/math_correct"] == 3


async def test_a_service_that_cannot_start_is_said_and_the_others_are_closed():
    first = FakeService()

    async def start(index: int) -> FakeService:
        if index == 1:
            raise ServiceLost("no room")
        return first

    with pytest.raises(ServiceLost, match="no room"):
        await ServicePool(start, num_services=2).start()
    assert first.is_closed


async def test_a_service_that_is_lost_while_it_starts_is_started_again():
    """As on a node that has just died: Ray puts actors there until it has noticed."""
    tries: list[int] = []
    first = FakeService()

    async def start(index: int) -> FakeService:
        tries.append(index)
        if len(tries) in (1, 3, 4):
            raise ServiceLost("it never ran")
        return first if len(tries) == 2 else FakeService()

    pool = ServicePool(start, num_services=1, max_losses=3)
    await pool.start()
    first.is_dead = True
    assert rewards(await pool.verify(make_task(), COMPLETIONS)) == [1.0, 0.0, 0.0, 1.0]
    assert tries == [0] * 5
    assert (await pool.metrics())["verify/lost_services"] == 1


async def test_a_pool_that_closes_starts_nothing_again():
    hold = asyncio.Event()
    started = Started(FakeService(hold=hold))
    pool = await started.pool(1)
    waiting = asyncio.create_task(pool.verify(make_task(), COMPLETIONS))
    await asyncio.sleep(0.01)
    await pool.close()
    started.services[0].is_dead = True
    hold.set()
    with pytest.raises(ServiceLost):
        await waiting
    assert started.indices == [0]
    assert started.services[0].is_closed

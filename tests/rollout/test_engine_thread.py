"""The thread that owns an engine: nobody waits for ever, whatever the engine does."""

from __future__ import annotations

import asyncio
import threading

import pytest

from rollout import engine_thread
from rollout.engine_thread import EngineThread
from rollout.errors import WorkerLost


class CountingEngine:
    """Every request ends after as many steps as it asks for; its result is the number of steps the engine has made."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.most_at_once = 0
        self.num_steps = 0
        self.is_closed = False
        self.thread = threading.current_thread()

    def add(self, request_id: str, steps: int) -> None:
        self.left[request_id] = steps

    def has_unfinished(self) -> bool:
        return bool(self.left)

    def step(self) -> list[tuple[str, int]]:
        self.num_steps += 1
        self.most_at_once = max(self.most_at_once, len(self.left))
        if -1 in self.left.values():
            raise MemoryError("no room")
        self.left = {request_id: steps - 1 for request_id, steps in self.left.items()}
        ended = [request_id for request_id, steps in self.left.items() if steps == 0]
        for request_id in ended:
            del self.left[request_id]
        return [(request_id, self.num_steps) for request_id in ended]

    def abort(self, request_id: str) -> None:
        self.left.pop(request_id, None)

    def close(self) -> None:
        self.is_closed = True


def start() -> EngineThread[CountingEngine]:
    return EngineThread(CountingEngine, name="test-engine")


async def request(thread: EngineThread[CountingEngine], name: str, steps: int) -> int:
    return await thread.request(name, lambda engine: engine.add(name, steps))


async def test_requests_made_together_step_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_thread, "GATHER_S", 0.2)  # on a busy machine they may arrive later than together
    thread = start()
    results = await asyncio.gather(*(request(thread, str(i), 5) for i in range(50)))
    assert results == [5] * 50
    assert await thread.call(lambda engine: engine.most_at_once) == 50
    await asyncio.to_thread(thread.stop)


async def test_everything_happens_in_the_thread_that_made_the_engine():
    thread = start()
    assert await thread.call(lambda engine: engine.thread is threading.current_thread() is not threading.main_thread())
    thread.stop()


def test_the_constructor_raises_what_making_the_engine_raised():
    def fail() -> CountingEngine:
        raise LookupError("no such model")

    with pytest.raises(LookupError, match="no such model"):
        EngineThread(fail, name="test-engine")


async def test_an_exception_in_a_command_is_the_callers_alone():
    thread = start()
    with pytest.raises(ZeroDivisionError):
        await thread.call(lambda engine: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        await thread.request("bad", lambda engine: 1 // 0)
    assert await request(thread, "good", 2) == 2
    thread.stop()


async def test_a_cancelled_request_is_aborted():
    thread = start()
    task = asyncio.create_task(request(thread, "endless", 10**9))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await thread.call(lambda engine: engine.left) == {}
    thread.stop()


async def test_a_failed_step_tells_everyone_who_waits_or_comes_later():
    thread = start()
    waiting = [asyncio.create_task(request(thread, str(i), 10**9)) for i in range(3)]
    await asyncio.sleep(0.01)
    with pytest.raises(WorkerLost, match="MemoryError: no room"):
        await request(thread, "fatal", -1)
    assert all(isinstance(result, WorkerLost) for result in await asyncio.gather(*waiting, return_exceptions=True))
    with pytest.raises(WorkerLost):
        await thread.call(lambda engine: engine.num_steps)
    await asyncio.to_thread(thread.stop)
    assert thread.engine.is_closed


async def test_stopping_ends_what_waits():
    thread = start()
    task = asyncio.create_task(request(thread, "endless", 10**9))
    await asyncio.sleep(0.01)
    await asyncio.to_thread(thread.stop)
    with pytest.raises(WorkerLost, match="closed"):
        await task
    thread.stop()
    assert thread.engine.is_closed

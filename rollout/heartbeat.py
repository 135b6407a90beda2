"""How the fleet tells a worker that hangs from one that is busy, and bad luck from workers that keep dying."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol, TypeVar

from rollout.errors import TooManyLosses, WorkerLost
from rollout.sampling import Sampling
from rollout.types import Completion, Snapshot
from verifiers.types import Task

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A load reads all weights, and a start may compile: they get so many times what a step gets.
LOAD_FACTOR = 5
START_FACTOR = 15
MAX_PAUSE_S = 15.0
WINDOW_S = 1800.0
MAX_DEATHS = 10


class WorkerHung(WorkerLost):
    """A worker that does not answer, dead or not: nothing can be asked of it any more."""


class Worker(Protocol):
    """What the fleet asks of a RolloutWorker, whether it is called directly or through a proxy of an actor.

    When a worker has been closed, or its process has died, what it was doing ends with WorkerLost.
    """

    def stream(self, task: Task, sampling: Sampling, *, n: int, seed: int) -> AsyncGenerator[tuple[Completion, ...]]: ...
    async def hold(self) -> None: ...
    async def load(self, snapshot: Snapshot) -> None: ...
    async def sleep(self) -> bool: ...
    async def ping(self) -> None: ...
    async def revive(self) -> bool: ...
    async def close(self) -> None: ...


class WatchedWorker:
    """A worker that is asked again and again whether its engine still steps, and closed when it does not answer in `heartbeat_s`.

    A load has a deadline of its own. What a hung worker was doing ends with a WorkerLost that says so.
    """

    def __init__(self, worker: Worker, *, heartbeat_s: float) -> None:
        self._worker = worker
        self._heartbeat_s = heartbeat_s
        self._num_loading = 0
        self._silence: WorkerLost | None = None
        self._watching = asyncio.create_task(self._watch())

    async def stream(self, task: Task, sampling: Sampling, *, n: int, seed: int) -> AsyncGenerator[tuple[Completion, ...]]:
        try:
            async with aclosing(self._worker.stream(task, sampling, n=n, seed=seed)) as finished:
                async for some in finished:
                    yield some
        except WorkerLost as loss:
            raise self._silence or loss from None

    async def hold(self) -> None:
        try:
            await self._worker.hold()
        except WorkerLost as loss:
            raise self._silence or loss from None

    async def load(self, snapshot: Snapshot) -> None:
        self._num_loading += 1
        try:
            await within(LOAD_FACTOR * self._heartbeat_s, self._worker.load(snapshot), f"to load version {snapshot.version}")
        except WorkerHung as loss:
            self._silence = loss
            raise
        except WorkerLost as loss:
            raise self._silence or loss from None
        finally:
            self._num_loading -= 1

    async def sleep(self) -> bool:
        try:
            return await self._worker.sleep()
        except WorkerLost as loss:
            raise self._silence or loss from None

    async def revived(self) -> WatchedWorker | None:
        """The same worker with a new engine, if it lives and only its engine died."""
        self._watching.cancel()
        if self._silence is not None:
            return None
        try:
            is_alive = await within(START_FACTOR * self._heartbeat_s, self._worker.revive(), "to start its engine again")
        except WorkerLost:
            return None
        return WatchedWorker(self._worker, heartbeat_s=self._heartbeat_s) if is_alive else None

    async def close(self) -> None:
        self._watching.cancel()
        await self._worker.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(self._heartbeat_s / 4, MAX_PAUSE_S))
            try:
                await within(self._heartbeat_s, self._worker.ping(), "to answer between two steps")
            except WorkerHung as loss:
                if self._num_loading:
                    continue
                self._silence = loss
                logger.warning("a rollout worker is given up: %s", loss)
                await self._worker.close()
                return
            except WorkerLost:  # whoever has work for it is told the same
                return


async def within(seconds: float, call: Awaitable[T], doing: str) -> T:
    """What the call returns. Raises WorkerHung when it takes longer; the call is cancelled then."""
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            return await call
    except TimeoutError:
        if not clock.expired():
            raise
        raise WorkerHung(
            f"it took more than {seconds:g} s {doing}, so it counts as hung. If it was only slow, raise engine.heartbeat_s."
        ) from None


class Deaths:
    """How often each worker has died of late. `last_words(i)` is what the i-th wrote last, or nothing where nobody knows."""

    def __init__(self, last_words: Callable[[int], str], *, most: int = MAX_DEATHS, window_s: float = WINDOW_S) -> None:
        self._last_words = last_words
        self._most = most
        self._window_s = window_s
        self._times: dict[int, deque[float]] = defaultdict(deque)
        self.total = 0

    def record(self, index: int, loss: WorkerLost) -> None:
        """Raises TooManyLosses when the worker has died more than `most` times within `window_s` seconds."""
        self.total += 1
        now, times = time.monotonic(), self._times[index]
        times.append(now)
        while times[0] < now - self._window_s:
            times.popleft()
        if len(times) > self._most:
            raise TooManyLosses(
                f"rollout worker {index} died {len(times)} times within {self._window_s / 60:g} minutes, the last time so: {loss}"
                + self.words(index)
            )

    def words(self, index: int) -> str:
        """The last words of a worker as the end of a message."""
        last = self._last_words(index)
        return f"\nThe last it wrote:\n{last}" if last else ""

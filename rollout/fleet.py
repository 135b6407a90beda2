"""The fleet: any number of rollout workers behind one `sample` and one `load`. Replaces workers that die."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from rollout.errors import WorkerLost
from rollout.sampling import Sampling, group_seed
from rollout.types import Completion, Snapshot
from rollout.waiting import all_of
from verifiers.types import Task

logger = logging.getLogger(__name__)


class Worker(Protocol):
    """What the fleet asks of a RolloutWorker, whether it is called directly or through a proxy of an actor."""

    def stream(self, task: Task, sampling: Sampling, *, n: int, seed: int) -> AsyncGenerator[tuple[Completion, ...]]: ...
    async def load(self, snapshot: Snapshot) -> None: ...
    async def close(self) -> None: ...


class Fleet:
    """Workers that all hold the weights of one snapshot.

    `start_worker(i)` makes the i-th worker, or makes it again after it was lost. `discard(snapshot)` frees a snapshot that no
    worker will need any more. A lost worker's group is run again on another or on its replacement; the seed comes from the task and
    the policy version, so what comes twice is equal, and is given on once. `max_losses` bounds how many workers may die under one
    group, and how often the start of one replacement is tried.
    """

    def __init__(
        self,
        start_worker: Callable[[int], Awaitable[Worker]],
        *,
        num_workers: int,
        sampling: Sampling,
        run_seed: int,
        discard: Callable[[Snapshot], None],
        max_losses: int = 3,
    ) -> None:
        self._start_worker = start_worker
        self._num_workers = num_workers
        self._sampling = sampling
        self._run_seed = run_seed
        self._discard = discard
        self._max_losses = max_losses
        self._workers: dict[int, Worker] = {}
        self._outstanding = [0] * num_workers
        self._snapshot: Snapshot | None = None
        self._replacing = asyncio.Lock()
        self._is_closing = False
        self._num_lost = 0
        self._load_s = 0.0

    async def start(self) -> None:
        async def start(index: int) -> None:
            self._workers[index] = await self._start_worker(index)

        await all_of(start(index) for index in range(self._num_workers))

    async def load(self, snapshot: Snapshot) -> None:
        """Give every worker these weights; returns when all have them. The snapshot before is discarded."""
        previous, self._snapshot = self._snapshot, snapshot
        started = time.perf_counter()
        try:
            await all_of(self._load(index, snapshot) for index in self._workers)
        finally:
            if previous is not None:
                self._discard(previous)
        self._load_s = time.perf_counter() - started

    async def _load(self, index: int, snapshot: Snapshot) -> None:
        worker = self._workers[index]
        try:
            await worker.load(snapshot)
        except WorkerLost as loss:
            await self._replace(index, worker, loss)

    async def sample(
        self, task: Task, *, n: int, sampling: Sampling | None = None, seed: int | None = None
    ) -> tuple[Completion, ...]:
        """As `stream`, once all have finished, in order of their indices."""
        async with aclosing(self.stream(task, n=n, sampling=sampling, seed=seed)) as finished:
            return tuple(sorted([one async for some in finished for one in some], key=lambda one: one.index))

    async def stream(
        self, task: Task, *, n: int, sampling: Sampling | None = None, seed: int | None = None
    ) -> AsyncGenerator[tuple[Completion, ...]]:
        """n completions of a task as they finish, from the worker with the fewest outstanding.

        `sampling` None is the training setting. `seed` None derives the group's seed from the run, the policy version and the task.
        Raises WorkerLost when workers keep dying under the same group.
        """
        assert self._snapshot is not None, "load a snapshot before sampling"
        setting = self._sampling if sampling is None else sampling
        given: set[int] = set()
        for _ in range(self._max_losses):
            first_seed = group_seed(self._run_seed, self._snapshot.version, task.id) if seed is None else seed
            index = min(self._workers, key=lambda i: (self._outstanding[i], i))
            worker = self._workers[index]
            self._outstanding[index] += n
            try:
                async with aclosing(worker.stream(task, setting, n=n, seed=first_seed)) as finished:
                    async for some in finished:
                        new = tuple(one for one in some if one.index not in given)
                        given.update(one.index for one in new)
                        if new:
                            yield new
                return
            except WorkerLost as loss:
                await self._replace(index, worker, loss)
            finally:
                self._outstanding[index] -= n
        raise WorkerLost(
            f"task {task.id}: {self._max_losses} rollout workers died while they sampled it. The logs of the workers in the run "
            "folder hold their last lines; out of memory is the usual cause (lower engine.max_num_seqs or sampling.max_tokens)."
        )

    async def _replace(self, index: int, lost: Worker, loss: WorkerLost) -> None:
        """Start worker `index` again with the current weights, unless another caller has done so already."""
        async with self._replacing:
            if self._workers[index] is not lost:
                return
            if self._is_closing:
                raise loss
            self._num_lost += 1
            await lost.close()
            for _ in range(self._max_losses):
                logger.warning("rollout worker %d was lost (%s); starting it again", index, loss)
                try:
                    self._workers[index] = await self._start_loaded(index)
                    return
                except WorkerLost as again:
                    loss = again
        raise WorkerLost(
            f"rollout worker {index} was lost and could not be started again in {self._max_losses} tries: {loss}"
        ) from loss

    async def _start_loaded(self, index: int) -> Worker:
        """A new worker that holds the weights of the moment: those that arrive while it loads are loaded after them."""
        worker = await self._start_worker(index)
        try:
            loaded = None
            while loaded is not self._snapshot:
                loaded = self._snapshot
                assert loaded is not None, "a worker can only be lost after it was given weights"
                await worker.load(loaded)
        except BaseException:
            await worker.close()
            raise
        return worker

    def metrics(self) -> dict[str, float]:
        return {"time/load_s": self._load_s, "fleet/lost_workers": self._num_lost}

    async def close(self) -> None:
        self._is_closing = True
        await asyncio.gather(*(worker.close() for worker in self._workers.values()), return_exceptions=True)
        if self._snapshot is not None:
            self._discard(self._snapshot)
            self._snapshot = None

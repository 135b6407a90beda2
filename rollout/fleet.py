"""The fleet: any number of rollout workers behind one `sample` and one `load`. Replaces workers that die or hang.

When a worker counts as hung, and how many deaths are too many, is decided in `heartbeat.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Literal

from rollout.delivery import Delivery, FileDelivery
from rollout.errors import SnapshotGone, SyncFailed, TooManyLosses, WorkerLost
from rollout.heartbeat import START_FACTOR, Deaths, WatchedWorker, Worker, within
from rollout.sampling import Sampling, group_seed
from rollout.types import Completion, Snapshot
from rollout.waiting import all_of
from rollout.workload import Workload
from verifiers.types import Task

Publish = Literal["wait", "inflight"]

logger = logging.getLogger(__name__)


class Fleet:
    """Workers that all hold the weights of one snapshot.

    `start_worker(i)` makes the i-th worker, or makes it again after it was lost. `discard(snapshot)` frees a snapshot that no
    worker will need any more. `publish` "wait" lets the turns under way end before a worker gets new weights, and holds back what
    would begin; "inflight" changes the weights under them.

    A lost worker's group is run again on another or on its replacement; the seed comes from the task and the policy version, so
    what comes twice is equal, and is given on once. `max_losses` bounds how many workers may die under one group, and how often
    the start of one replacement is tried: after that the others go on without it. A worker that does not answer within
    `heartbeat_s` seconds is lost too. TooManyLosses, with the `last_words` of the worker, ends a run whose workers keep dying, or
    that has none left.
    """

    def __init__(
        self,
        start_worker: Callable[[int], Awaitable[Worker]],
        *,
        num_workers: int,
        sampling: Sampling,
        run_seed: int,
        discard: Callable[[Snapshot], None],
        publish: Publish = "inflight",
        max_losses: int = 3,
        heartbeat_s: float = 120.0,
        last_words: Callable[[int], str] = lambda index: "",
    ) -> None:
        self._start_worker = start_worker
        self._num_workers = num_workers
        self._sampling = sampling
        self._run_seed = run_seed
        self._discard = discard
        self._publish = publish
        self.delivery: Delivery = FileDelivery()
        self._max_losses = max_losses
        self._heartbeat_s = heartbeat_s
        self._deaths = Deaths(last_words)
        self._workers: dict[int, WatchedWorker] = {}
        self._workload = Workload(num_workers)
        self._snapshot: Snapshot | None = None
        self._newer = asyncio.Event()
        self._loading = asyncio.Lock()
        self._replacing = [asyncio.Lock() for _ in range(num_workers)]
        self._is_asleep = False
        self._is_closing = False
        self._load_s = 0.0

    async def start(self) -> None:
        async def start(index: int) -> None:
            self._workers[index] = await self._start(index)

        await all_of(start(index) for index in range(self._num_workers))

    async def load(self, snapshot: Snapshot) -> None:
        """Give every worker these weights; returns when all have them. The snapshot before is discarded."""
        previous, self._snapshot = self._snapshot, snapshot
        self._newer.set()
        self._newer = asyncio.Event()
        started = time.perf_counter()
        try:
            async with self._loading:
                await self._load(dict(self._workers), snapshot)
        finally:
            if previous is not None:
                self._discard(previous)
        self._load_s = time.perf_counter() - started

    async def sleep(self) -> None:
        """Let every worker give its memory up. The next load wakes them; so does the next group, with the weights that they had."""

        async def sleep(worker: WatchedWorker) -> bool:
            try:
                return await worker.sleep()
            except WorkerLost:  # whoever has work for it is told the same
                return True

        async with self._loading:
            self._is_asleep = any(await all_of(sleep(worker) for worker in self._workers.values()))

    async def _wake(self) -> None:
        newer = self._newer
        try:
            async with self._loading:
                if self._is_asleep and self._snapshot is not None:
                    await self._load(dict(self._workers), self._snapshot)
        except SnapshotGone:  # the learner is about to publish the next
            await newer.wait()
            async with self._loading:
                pass

    async def _load(self, workers: dict[int, WatchedWorker], snapshot: Snapshot) -> None:
        losses: dict[int, WorkerLost] = {}

        async def hold(index: int) -> None:
            try:
                await workers[index].hold()
            except WorkerLost as loss:
                losses[index] = loss

        if self._publish == "wait":
            await all_of(hold(index) for index in workers)
        alive = {index: worker for index, worker in workers.items() if index not in losses}
        losses |= await self.delivery.deliver(snapshot, alive)
        await all_of(self._replace(index, workers[index], loss) for index, loss in losses.items())
        self._is_asleep = False

    async def sample_each(self, task: Task, *, sampling: Sampling, seed: int) -> list[Completion]:
        """One completion of a task from every worker."""
        each = await all_of(self.sample(task, n=1, sampling=sampling, seed=seed, on=index) for index in tuple(self._workers))
        return [completion for (completion,) in each]

    async def sample(
        self, task: Task, *, n: int, sampling: Sampling | None = None, seed: int | None = None, on: int | None = None
    ) -> tuple[Completion, ...]:
        """As `stream`, once all have finished, in order of their indices."""
        async with aclosing(self.stream(task, n=n, sampling=sampling, seed=seed, on=on)) as finished:
            return tuple(sorted([one async for some in finished for one in some], key=lambda one: one.index))

    async def stream(
        self, task: Task, *, n: int, sampling: Sampling | None = None, seed: int | None = None, on: int | None = None
    ) -> AsyncGenerator[tuple[Completion, ...]]:
        """n completions of a task as they finish, all from one worker: the one with the fewest tokens to compute, or number `on`.

        `sampling` None is the training setting. `seed` None derives the group's seed from the run, the policy version and the task.
        Raises WorkerLost when workers keep dying under the same group.
        """
        assert self._snapshot is not None, "load a snapshot before sampling"
        if self._is_asleep:
            await self._wake()
        setting = self._sampling if sampling is None else sampling
        given: set[int] = set()
        for _ in range(self._max_losses):
            index = on if on is not None and on in self._workers else await self._pick()
            worker = self._workers[index]
            first_seed = group_seed(self._run_seed, self._snapshot.version, task.id) if seed is None else seed
            try:
                with self._workload.group(index, task, setting, n=n) as load:
                    async with aclosing(worker.stream(task, setting, n=n, seed=first_seed)) as finished:
                        async for some in finished:
                            load.ended(some)
                            new = tuple(one for one in some if one.index not in given)
                            given.update(one.index for one in new)
                            if new:
                                yield new
                return
            except WorkerLost as loss:
                await self._replace(index, worker, loss)
            except SyncFailed:
                if not self._loading.locked():
                    raise
                async with self._loading:  # the load that broke under this group is tried again
                    pass
        raise WorkerLost(
            f"task {task.id}: {self._max_losses} rollout workers died while they sampled it. The logs of the workers in the run "
            "folder hold their last lines; out of memory is the usual cause (lower engine.max_num_seqs or sampling.max_tokens)."
        )

    async def _pick(self) -> int:
        """The worker with the least to do. Those that are being replaced are waited for when there are no others."""
        while self._workers:
            ready = [index for index in self._workers if not self._replacing[index].locked()]
            if ready:
                return self._workload.least(ready)
            async with self._replacing[next(iter(self._workers))]:
                pass
        raise TooManyLosses("no rollout worker is alive. Resume the run to start them again; their logs are in the run folder.")

    async def _replace(self, index: int, lost: WatchedWorker, loss: WorkerLost) -> None:
        """Start worker `index` again with the current weights, unless another caller has done so already."""
        async with self._replacing[index]:
            if self._workers.get(index) is not lost:
                return
            if self._is_closing:
                raise loss
            self._deaths.record(index, loss)
            for _ in range(self._max_losses):
                logger.warning("rollout worker %d was lost (%s); starting it again", index, loss)
                try:
                    self._workers[index] = await self._start_loaded(index, lost)
                    return
                except WorkerLost as again:
                    loss = again
            del self._workers[index]
            given_up = f"rollout worker {index} was lost and could not be started again in {self._max_losses} tries: {loss}"
            if not self._workers:
                raise TooManyLosses(given_up + self._deaths.words(index)) from loss
            logger.warning("%s The run goes on with %d others.", given_up, len(self._workers))

    async def _start(self, index: int) -> WatchedWorker:
        worker = await within(START_FACTOR * self._heartbeat_s, self._start_worker(index), f"to start worker {index}")
        return WatchedWorker(worker, heartbeat_s=self._heartbeat_s)

    async def _start_loaded(self, index: int, lost: WatchedWorker) -> WatchedWorker:
        """A worker in place of a lost one that holds the weights of the moment: those that come while it loads are loaded next."""
        worker = await lost.revived()
        if worker is None:
            await lost.close()
            worker = await self._start(index)
        try:
            loaded = None
            while loaded is not self._snapshot:
                loaded, newer = self._snapshot, self._newer
                assert loaded is not None, "a worker can only be lost after it was given weights"
                try:
                    losses = await self.delivery.deliver(loaded, {index: worker})
                except SnapshotGone:  # the learner is about to publish the next
                    await newer.wait()
                else:
                    for loss in losses.values():
                        raise loss
        except BaseException:
            await worker.close()
            raise
        return worker

    def metrics(self) -> dict[str, float]:
        return {"time/load_s": self._load_s, "fleet/lost_workers": self._deaths.total}

    async def close(self) -> None:
        self._is_closing = True
        await asyncio.gather(*(worker.close() for worker in self._workers.values()), return_exceptions=True)
        if self._snapshot is not None:
            self._discard(self._snapshot)
            self._snapshot = None

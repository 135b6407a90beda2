"""How a snapshot gets from the learner to the workers: each reads the file, or the learner sends while all receive, or lends memory
while they read.

Workers that die on the way are named, not replaced: that is the fleet's business, and their replacements are delivered to alone.
"""

from __future__ import annotations

import asyncio
import logging
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from rollout.errors import SnapshotGone, SyncFailed, WorkerLost
from rollout.types import BroadcastSeat, Loan, Snapshot
from rollout.waiting import all_of

logger = logging.getLogger(__name__)

MAX_TRIES = 3


class Loader(Protocol):
    """What is asked of a worker here."""

    async def load(self, snapshot: Snapshot) -> None: ...


class Sender(Protocol):
    """What is asked of the learner here."""

    async def open_group(self, world_size: int) -> BroadcastSeat: ...
    async def send(self, snapshot: Snapshot, seat: BroadcastSeat) -> None: ...
    async def close_group(self) -> None: ...


class Lender(Protocol):
    """What is asked of a learner that lends."""

    async def lend(self, snapshot: Snapshot, count: int) -> Sequence[Loan]: ...
    async def take_back(self) -> None: ...


class Delivery(Protocol):
    async def deliver(self, snapshot: Snapshot, workers: Mapping[int, Loader]) -> dict[int, WorkerLost]:
        """Returns when each of these workers holds the snapshot, or was lost: those that were, by index, with the cause."""
        ...


class FileDelivery:
    """Every worker reads the snapshot's file by itself."""

    async def deliver(self, snapshot: Snapshot, workers: Mapping[int, Loader]) -> dict[int, WorkerLost]:
        lost: dict[int, WorkerLost] = {}

        async def load(index: int, worker: Loader) -> None:
            try:
                await worker.load(snapshot)
            except WorkerLost as loss:
                lost[index] = loss

        await all_of(load(index, worker) for index, worker in workers.items())
        return lost


class LoanDelivery:
    """The learner lends its memory to all workers, and takes it back when the last has read it: see lending.py."""

    def __init__(self, learner: Lender) -> None:
        self._learner = learner
        self._lending = asyncio.Lock()

    async def deliver(self, snapshot: Snapshot, workers: Mapping[int, Loader]) -> dict[int, WorkerLost]:
        """See Delivery. Raises SnapshotGone when the learner has moved on, SyncFailed when its memory is not as it was lent."""
        async with self._lending:
            loans = await self._learner.lend(snapshot, len(workers))
            try:
                readers = {index: Borrower(worker, loan) for (index, worker), loan in zip(workers.items(), loans, strict=True)}
                return await FileDelivery().deliver(snapshot, readers)
            finally:
                await self._learner.take_back()


class Borrower:
    """A worker with the loan that it is given."""

    def __init__(self, worker: Loader, loan: Loan) -> None:
        self._worker = worker
        self._loan = loan

    async def load(self, snapshot: Snapshot) -> None:
        await self._worker.load(replace(snapshot, loan=self._loan))


class BroadcastDelivery:
    """The learner sends to all workers at once. The group that they form is used again as long as they stay the same.

    Each worker has `ranks_per_worker` processes. When one of them dies or fails, the broadcast is broken for all: it is sent again,
    through a new group of those that live. `grace_s` is how long the others may take to notice; who then still waits is lost.
    """

    def __init__(self, learner: Sender, *, ranks_per_worker: int = 1, grace_s: float = 90.0) -> None:
        self._learner = learner
        self._ranks_per_worker = ranks_per_worker
        self._grace_s = grace_s
        self._sending = asyncio.Lock()
        self._members: list[Loader] = []
        self._seat: BroadcastSeat | None = None

    async def deliver(self, snapshot: Snapshot, workers: Mapping[int, Loader]) -> dict[int, WorkerLost]:
        """See Delivery. Raises SyncFailed when the survivors cannot be reached, SnapshotGone when the learner has moved on."""
        lost: dict[int, WorkerLost] = {}
        num_failed = 0
        async with self._sending:
            while left := {index: worker for index, worker in workers.items() if index not in lost}:
                failures = await self._broadcast(snapshot, left)
                if not failures:
                    break
                newly_lost = {
                    index: error for index, error in failures.items() if index is not None and isinstance(error, WorkerLost)
                }
                lost |= newly_lost
                num_failed += not newly_lost
                first = next(iter((newly_lost or failures).values()))
                if num_failed == MAX_TRIES or not all(_can_be_mended(error) for error in failures.values()):
                    raise next((error for error in failures.values() if not _can_be_mended(error)), first)
                logger.warning("version %d is sent again, because %s", snapshot.version, first)
        return lost

    async def _broadcast(self, snapshot: Snapshot, workers: Mapping[int, Loader]) -> dict[int | None, BaseException]:
        """One try. What failed, by the worker's index; None for the learner."""
        seat = await self._seat_for([*workers.values()])
        calls: dict[asyncio.Future[None], int | None] = {
            asyncio.ensure_future(worker.load(replace(snapshot, seat=self._seat_of(place, seat)))): index
            for place, (index, worker) in enumerate(workers.items())
        }
        calls[asyncio.ensure_future(self._learner.send(snapshot, seat))] = None
        waiting: set[asyncio.Future[None]] = set(calls)
        try:
            ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
            if all(_failure(call) is None for call in ended):
                waiting = set()
                return {}
            await self._break_up()
            if waiting:
                _, waiting = await asyncio.wait(waiting, timeout=self._grace_s)
        finally:
            for call in waiting:
                call.cancel()
            if waiting:
                await self._break_up()
                await asyncio.wait(waiting, timeout=self._grace_s)
        late = WorkerLost(f"it did not end within {self._grace_s:g} s after the broadcast of weights broke. It is replaced.")
        failures = {index: late if call in waiting else _failure(call) for call, index in calls.items()}
        return {index: failure for index, failure in failures.items() if failure is not None}

    async def _seat_for(self, workers: Sequence[Loader]) -> BroadcastSeat:
        is_known = len(workers) == len(self._members) and all(map(operator.is_, workers, self._members))
        if self._seat is None or not is_known:
            self._seat, self._members = None, []
            self._seat = await self._learner.open_group(1 + len(workers) * self._ranks_per_worker)
            self._members = [*workers]
        return self._seat

    def _seat_of(self, place: int, seat: BroadcastSeat) -> BroadcastSeat:
        return replace(seat, first_rank=1 + place * self._ranks_per_worker)

    async def _break_up(self) -> None:
        """Who still waits at the meeting point, or for the learner, is told that nothing will come."""
        self._seat, self._members = None, []
        await self._learner.close_group()


def _failure(call: asyncio.Future[None]) -> BaseException | None:
    return SyncFailed("the call was cancelled.") if call.cancelled() else call.exception()


def _can_be_mended(error: BaseException) -> bool:
    """Whether sending again may help."""
    return isinstance(error, WorkerLost) or (isinstance(error, SyncFailed) and not isinstance(error, SnapshotGone))

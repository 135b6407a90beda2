"""A learner of several ranks, used like one: each call goes to every rank, and the first one's answer is the answer."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from grpo.ranks import Place, open_meeting
from rollout.waiting import all_of
from sandbox.errors import SystemFault, UserError

if TYPE_CHECKING:
    from grpo.batch import Example
    from grpo.learner import LearnerSpec, Update
    from rollout.types import BroadcastSeat, Loan, Snapshot

# A rank that fails leaves the others waiting for it, or failing because of it: how long they are given to say which was first.
LAST_WORDS_S = 5.0


class LearnerLost(SystemFault):
    """A process of the learner died, or hung and was ended. What it had learnt is in the newest checkpoint."""


class LearnerGroup:
    """The ranks are learners, or proxies of them, that have met.

    `share` makes of the rows of a step what is sent to every rank: the place to put a large thing once. `meeting` is where the
    ranks met, which lives as long as they do. `keep_sent`: the first rank has a copy of what it sends or lends, and needs no other.
    When a rank fails the call fails, with LearnerLost before what its death did to the others; the group is of no use then, unless
    it was a broadcast that failed.
    """

    def __init__(
        self,
        ranks: Sequence[Any],
        *,
        share: Callable[[Any], Any] = lambda rows: rows,
        meeting: Any = None,
        keep_sent: bool = False,
    ) -> None:
        self._ranks = ranks
        self._share = share
        self._meeting = meeting
        self._keep_sent = keep_sent
        self._turn = asyncio.Lock()  # all ranks do the same things in the same order, or they wait for each other for ever

    async def update(self, examples: Sequence[Example]) -> Update:
        return await self._all("update", self._share(list(examples)))

    async def score(self, examples: Sequence[Example]) -> list[tuple[float, ...]]:
        return await self._all("score", self._share(list(examples)))

    async def publish(self, version: int) -> Snapshot:
        return await self._all("publish", version)

    async def open_group(self, world_size: int) -> BroadcastSeat:
        return await self._ranks[0].open_group(world_size)

    async def send(self, snapshot: Snapshot, seat: BroadcastSeat) -> None:
        if self._keep_sent:
            await self._ranks[0].send(snapshot, seat)
        else:
            await self._all("send", snapshot, seat)

    async def close_group(self) -> None:
        await self._ranks[0].close_group()

    async def lend(self, snapshot: Snapshot, count: int) -> Sequence[Loan]:
        if self._keep_sent:
            return await self._ranks[0].lend(snapshot, count)
        return await self._all("lend", snapshot, count)

    async def take_back(self) -> None:
        await self._ranks[0].take_back()

    async def save(self, folder: str) -> None:
        await self._all("save", folder)

    async def restore(self, folder: str) -> None:
        await self._all("restore", folder)

    async def export(self, folder: str) -> None:
        await self._all("export", folder)

    async def close(self) -> None:
        await all_of(rank.close() for rank in self._ranks)

    async def _all(self, method: str, *args: Any) -> Any:
        async with self._turn:
            return await self._ask_all(method, *args)

    async def _ask_all(self, method: str, *args: Any) -> Any:
        calls = [asyncio.ensure_future(getattr(rank, method)(*args)) for rank in self._ranks]
        try:
            await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
            if any(call.done() and call.exception() for call in calls):
                await asyncio.wait(calls, timeout=LAST_WORDS_S)
        finally:
            for call in calls:
                call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        errors = [error for call in calls if not call.cancelled() and (error := call.exception())]
        if errors:
            raise min(errors, key=_blame)
        return calls[0].result()


def _blame(error: BaseException) -> int:
    """What is told when several ranks fail: a death first, then what we raise ourselves, then how the connection broke."""
    return 0 if isinstance(error, LearnerLost) else 1 if isinstance(error, (SystemFault, UserError)) else 2


async def start_group(
    start_rank: Callable[[LearnerSpec], Awaitable[Any]],
    spec: LearnerSpec,
    *,
    count: int,
    host: str,
    share: Callable[[Any], Any] = lambda rows: rows,
) -> LearnerGroup:
    """`count` ranks that `start_rank` makes, and that meet at this process, which they reach at `host`."""
    meeting = open_meeting(host)
    places = [Place(rank, count, (host, meeting.port)) for rank in range(count)]
    ranks = await all_of(start_rank(dataclasses.replace(spec, place=place)) for place in places)
    return LearnerGroup(ranks, share=share, meeting=meeting, keep_sent=spec.keep_sent)

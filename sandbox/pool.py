"""The sandbox that callers use: so many slots of one level, made when first needed, replaced when spent, lost ones retried.

`open_sandbox` is the one door. A pool belongs to the event loop that first uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from sandbox.config import SandboxConfig
from sandbox.errors import SandboxLost, SandboxUnavailable, UserError
from sandbox.protocol import Sandbox, Session
from sandbox.slot import Slot, Wire, start
from sandbox.types import Execution, Limits, Program

logger = logging.getLogger(__name__)

MAX_JOBS, MAX_AGE_S = 500, 600.0
TRIES = 3
PATIENCE_S = 60.0
KEEP_EVERY_S = 30.0
MAX_TIMINGS = 100_000


class Host(Protocol):
    """Where fork servers are started."""

    async def start(self, name: str) -> Wire: ...

    async def close(self) -> None: ...


class SandboxConfigError(UserError):
    """A [sandbox] section that may not be run as it is."""


def open_sandbox(config: SandboxConfig, *, patience_s: float = PATIENCE_S) -> Sandbox:
    """The sandbox of a config; nothing is started before the first program. For `patience_s`, see Pool.

    Raises SandboxConfigError when the config asks for no walls and does not say that it trusts the programs.
    """
    if config.level == "none" and not config.trusted:
        raise SandboxConfigError(
            "sandbox.level is none, so programs would run as you, with your files and your network. Use warm (Docker) or "
            "bubblewrap; or, if you would run every one of these programs yourself, also set sandbox.trusted = true."
        )
    if config.level == "none":
        logger.warning("sandbox.level is none: programs run without any walls, because sandbox.trusted says they may")
    max_jobs = 1 if config.level in ("fresh", "gvisor") else MAX_JOBS
    num_slots = config.slots or len(os.sched_getaffinity(0))
    return Pool(lambda: _host(config), num_slots=num_slots, name=config.level, max_jobs=max_jobs, patience_s=patience_s)


async def _host(config: SandboxConfig) -> Host:
    """Raises SandboxUnavailable when this machine has no such level."""
    if config.level in ("bubblewrap", "none"):
        from sandbox.bubblewrap import JailHost

        return JailHost(config, walled=config.level == "bubblewrap")
    from sandbox.cleaning import sweep
    from sandbox.docker import GVISOR_RUNTIME, DockerHost, connect
    from sandbox.image import find_image

    client = await asyncio.to_thread(connect)
    try:
        image = await asyncio.to_thread(find_image, client, config.image)
        await asyncio.to_thread(sweep, client)
    finally:
        await asyncio.to_thread(client.close)
    return DockerHost(config, image=image.id, runtime=GVISOR_RUNTIME if config.level == "gvisor" else None)


class Pool:
    """A Sandbox of `num_slots` places. At a place stands a slot, or none yet; a free place is taken by one caller at a time.

    Callers get places in the order in which they came. What worked before and does not now is waited for, until the outage has
    lasted `patience_s`; from then on, and where nothing ever worked, each caller fails after one try, until a try succeeds.
    """

    def __init__(
        self,
        make_host: Callable[[], Awaitable[Host]],
        *,
        num_slots: int,
        name: str,
        max_jobs: int = MAX_JOBS,
        max_age_s: float = MAX_AGE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._make_host, self._name = make_host, name
        self._max_jobs, self._max_age_s, self._patience_s = max_jobs, max_age_s, patience_s
        self._host: Host | None = None
        self._slots: list[Slot | None] = [None] * num_slots
        self._free = list(range(num_slots))
        self._places = asyncio.Semaphore(num_slots)
        self._host_lock = asyncio.Lock()
        self._has_worked = False
        self._down_since: float | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._keeper: asyncio.Task[Any] | None = None
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._seconds: dict[str, deque[float]] = {name: deque(maxlen=MAX_TIMINGS) for name in ("queue", "run")}

    async def run(self, program: Program, *, stdin: str = "", limits: Limits = Limits()) -> Execution:  # noqa: B008  # frozen
        """See `sandbox.protocol.Sandbox.run`."""
        for attempt in range(1, TRIES + 1):
            try:
                async with self._place() as slot:
                    execution = await slot.run(program, stdin=stdin, limits=limits)
                self._observe(execution)
                return execution
            except SandboxLost as error:
                self._counts["lost"] += 1
                if attempt == TRIES:
                    raise
                logger.warning("a program is run again (try %d of %d): %s", attempt + 1, TRIES, error)
        raise AssertionError("the last try returns or raises")

    @contextlib.asynccontextmanager
    async def open(self, program: Program, *, limits: Limits = Limits()) -> AsyncIterator[Session]:  # noqa: B008  # frozen
        """See `sandbox.protocol.Sandbox.open`. What is lost in a session is not retried here: its questions are the caller's."""
        async with self._place() as slot, slot.open(program, limits=limits) as session:
            try:
                yield session
            except SandboxLost:
                self._counts["lost"] += 1
                raise
            finally:
                await session.end()
                if session.execution is not None:
                    self._observe(session.execution)

    def metrics(self) -> dict[str, float]:
        """Endings, losses and seconds since the last call."""
        metrics = {f"sandbox/{name}": float(count) for name, count in sorted(self._counts.items())}
        for name, seconds in self._seconds.items():
            if seconds:
                ordered = sorted(seconds)
                metrics[f"sandbox/{name}_p50_s"] = ordered[(len(ordered) - 1) // 2]
                metrics[f"sandbox/{name}_p99_s"] = ordered[(len(ordered) - 1) * 99 // 100]
            seconds.clear()
        self._counts.clear()
        return metrics

    async def close(self) -> None:
        """End every slot and whatever runs in it."""
        self._closed = True
        tasks = [*self._tasks, *([self._keeper] if self._keeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(slot.close() for slot in self._slots if slot is not None))
        self._slots = [None] * len(self._slots)
        if self._host is not None:
            await self._host.close()

    def _observe(self, execution: Execution) -> None:
        self._counts[execution.ending.value] += 1
        self._seconds["run"].append(execution.wall_s)

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[Slot]:
        """A slot that nobody else uses. Raises SandboxUnavailable when none can be had."""
        if self._closed:
            raise SandboxUnavailable("this sandbox was closed.")
        began = time.monotonic()
        await self._places.acquire()
        place = self._free.pop()
        try:
            slot = await self._standing(place)
            self._seconds["queue"].append(time.monotonic() - began)
            yield slot
        finally:
            self._give_back(place)

    def _give_back(self, place: int) -> None:
        """Free the place; a spent slot is replaced first, in the background."""
        slot = self._slots[place]
        if slot is None or not slot.is_spent or self._closed:
            self._free.append(place)
            self._places.release()
        else:
            self._spawn(self._renew(place))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _renew(self, place: int) -> None:
        try:
            await self._standing(place)
        except SandboxUnavailable as error:
            logger.info("a %s slot could not be replaced yet: %s", self._name, error)
        finally:
            self._free.append(place)
            self._places.release()

    async def _standing(self, place: int) -> Slot:
        """The slot at this place, new if there was none or it was spent. Tries until the outage has lasted too long."""
        slot = self._slots[place]
        if slot is not None and not slot.is_spent:
            return slot
        if slot is not None:
            await slot.close()  # stays in its place until it is gone, for `close` to find
            self._slots[place] = None
            self._counts["slots_replaced"] += 1
        delay_s = 0.1
        while True:
            try:
                slot = self._slots[place] = await self._start(place)
                self._has_worked, self._down_since = True, None
                return slot
            except SandboxUnavailable as error:
                if not self._has_worked:
                    raise
                if self._down_since is None:
                    self._down_since = time.monotonic()
                    logger.warning("no %s slot for now; trying for %g s: %s", self._name, self._patience_s, error)
                if time.monotonic() - self._down_since + delay_s > self._patience_s:
                    raise
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, 5.0)

    async def _start(self, place: int) -> Slot:
        async with self._host_lock:
            if self._host is None:
                self._host = await self._make_host()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        wire = await self._host.start(f"{self._name}-{place}")
        return await start(wire, max_jobs=self._max_jobs, max_age_s=self._max_age_s)

    async def _keep(self) -> None:
        """Now and then ask every idle slot how it is: one that nobody asks anything ends by itself."""
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            for place in range(len(self._slots)):
                if place in self._free and not self._places.locked():
                    await self._places.acquire()
                    if place not in self._free:  # taken while we waited
                        self._places.release()
                        continue
                    self._free.remove(place)
                    slot = self._slots[place]
                    if slot is not None and not slot.is_spent:
                        with contextlib.suppress(SandboxLost):
                            await slot.ping()
                    self._give_back(place)

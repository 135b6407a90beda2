"""Verifier services behind one `verify`, in processes of their own, on as many nodes: what one loses, another does again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from sandbox.errors import SystemFault
from verifiers.service import Judgeable, Text
from verifiers.types import Task, Verdict

logger = logging.getLogger(__name__)


class VerifiersConfig(BaseModel):
    """[verifiers]: the processes that judge completions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_services: int | None = Field(
        default=None, ge=1, le=1024, description="Verifier services, spread over the nodes. None: one for each node."
    )
    workers: int = Field(default=2, ge=1, le=256, description="Processes that each verifier may keep, in each service.")


class ServiceLost(SystemFault):
    """The process of a verifier service died."""


class Service(Protocol):
    """What is asked of a VerifierService, whether it is called directly or through a proxy of an actor."""

    async def judge(self, task: Task, texts: Sequence[Text]) -> tuple[Verdict, ...]: ...
    async def metrics(self) -> dict[str, float]: ...
    async def close(self) -> None: ...


class ServicePool:
    """`num_services` equal services; `start_service(i)` makes the i-th, or makes it again after its process died.

    Completions of a group are judged together, by the service that has the fewest to judge. Verdicts do not depend on who gives
    them, so those of a lost service are given by another. Completions under which `max_losses` services died are unscored: one of
    them may be the reason. Raises what `start_service` raises; a ServiceLost when it comes `max_losses` times in a row.
    """

    def __init__(self, start_service: Callable[[int], Awaitable[Service]], *, num_services: int, max_losses: int = 3) -> None:
        self._start_service = start_service
        self._max_losses = max_losses
        self._services: list[Service] = []
        self._outstanding = [0] * num_services
        self._replacing = asyncio.Lock()
        self._is_closing = False
        self._num_lost = 0

    async def start(self) -> None:
        """All services, at the same time."""
        starting = await asyncio.gather(*map(self._started, range(len(self._outstanding))), return_exceptions=True)
        self._services = [service for service in starting if not isinstance(service, BaseException)]
        for failure in starting:
            if isinstance(failure, BaseException):
                await self.close()
                raise failure

    async def verify(self, task: Task, completions: Sequence[Judgeable]) -> tuple[Verdict, ...]:
        """One verdict for each completion, in order. Only texts travel, not their tokens."""
        texts = [Text(completion.text, completion.num_completion_tokens) for completion in completions]
        lost = ""
        for _ in range(self._max_losses):
            index = min(range(len(self._services)), key=lambda i: self._outstanding[i])
            service = self._services[index]
            self._outstanding[index] += len(texts)
            try:
                return await service.judge(task, texts)
            except ServiceLost as loss:
                lost = str(loss)
                await self._replace(index, service, loss)
            finally:
                self._outstanding[index] -= len(texts)
        cause = f"{self._max_losses} verifier services died while they judged task {task.id}, the last so: {lost}"
        logger.warning("%s", cause)
        return tuple(Verdict(None, False, (), cause) for _ in texts)

    async def _replace(self, index: int, lost: Service, loss: ServiceLost) -> None:
        """Start a service again, unless another caller has done so already."""
        async with self._replacing:
            if self._services[index] is not lost:
                return
            if self._is_closing:
                raise loss
            self._num_lost += 1
            logger.warning("verifier service %d was lost (%s); starting it again", index, loss)
            await lost.close()
            self._services[index] = await self._started(index)

    async def _started(self, index: int) -> Service:
        """A service that was lost while it started, as with a node that is not known to be dead yet, is started again."""
        for _ in range(self._max_losses - 1):
            try:
                return await self._start_service(index)
            except ServiceLost as loss:
                logger.warning("verifier service %d was lost while it started (%s); starting it again", index, loss)
        return await self._start_service(index)

    async def metrics(self) -> dict[str, float]:
        """Those of all services since the last call: counts added up, seconds (`*_s`) of the slowest."""
        metrics: dict[str, float] = {}
        for told in await asyncio.gather(*(service.metrics() for service in self._services), return_exceptions=True):
            if isinstance(told, ServiceLost):  # its metrics went with it; the next verify replaces it
                continue
            if isinstance(told, BaseException):
                raise told
            for name, value in told.items():
                metrics[name] = max(metrics.get(name, 0.0), value) if name.endswith("_s") else metrics.get(name, 0) + value
        return metrics | {"verify/lost_services": self._num_lost}

    async def close(self) -> None:
        self._is_closing = True
        await asyncio.gather(*(service.close() for service in self._services), return_exceptions=True)

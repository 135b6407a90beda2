"""The only place that imports Ray: plain classes become actors, and proxies are awaited as the classes themselves would be."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sandbox.errors import SystemFault

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
OBJECT_STORE_BYTES = 256 << 20


class ClusterUnavailable(SystemFault):
    """No Ray cluster could be started or joined."""


class Proxy:
    """An actor, used like the object inside it: `await proxy.method(...)`.

    Errors of the object arrive as they were raised. When the actor's process has died the call raises `lost`. A cancelled call is
    cancelled in the actor too.
    """

    def __init__(self, actor: Any, name: str, lost: type[Exception], log_file: Path) -> None:
        self._actor = actor
        self._name = name
        self._lost = lost
        self._log_file = log_file

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._await(self._actor.call.remote(method, args, kwargs))

        return call

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        """The items of the object's own `stream(...)`, as they come. Closing this ends that."""
        references = self._actor.stream.options(num_returns="streaming").remote(args, kwargs)
        is_finished = False
        try:
            async for reference in references:
                yield await self._await(reference)
            is_finished = True
        finally:
            if not is_finished:
                ray.cancel(references)

    async def _await(self, reference: Any) -> Any:
        try:
            return await reference
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        except RayTaskError as error:
            raise error.cause from None  # type: ignore[misc]
        except RayActorError as error:
            raise self._lost(f"the process of {self._name} died: {_last_line(error)} Its log is {self._log_file}.") from None
        except RayError as error:
            raise self._lost(f"Ray lost a call to {self._name}: {_last_line(error)}") from None

    async def build(self, factory: Any, args: tuple[Any, ...]) -> None:
        await self._await(self._actor.build.remote(factory, args))

    async def close(self) -> None:
        """Ask the object to close, then end its process, whether it answered or not."""
        try:
            await asyncio.wait_for(self._actor.call.remote("close", (), {}), CLOSE_TIMEOUT_S)
        except (RayError, TimeoutError) as error:
            logger.debug("%s did not close by itself: %s", self._name, error)
        ray.kill(self._actor)


class Host:
    """What runs in an actor's process: one object, its output in a log file of the run folder."""

    def __init__(self, log_file: str) -> None:
        descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
        self._object: Any = None

    async def build(self, factory: Any, args: tuple[Any, ...]) -> None:
        # Here and not in the constructor: an error raised there would reach the caller as the actor's death.
        self._object = await asyncio.to_thread(factory, *args)

    async def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return await getattr(self._object, method)(*args, **kwargs)

    async def stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncGenerator[Any]:
        async with aclosing(self._object.stream(*args, **kwargs)) as items:
            async for item in items:
                yield item


class Cluster:
    """A Ray cluster: one of our own on this machine (`address` "local"), or one that runs already."""

    def __init__(self, address: str, *, logs: Path) -> None:
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        local: dict[str, Any] = (
            {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False} if address == "local" else {}
        )
        # An inherited address would silently join a cluster that somebody else runs.
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ClusterUnavailable(
                f"ray_address = {address!r}: no Ray cluster could be started or joined: {error}. "
                "Use local to start one for this run."
            ) from error

    @property
    def num_gpus(self) -> float:
        return ray.cluster_resources().get("GPU", 0.0)

    @property
    def num_nodes(self) -> int:
        """Nodes that are alive."""
        return len(self._nodes())

    @property
    def host(self) -> str:
        """Where the actors reach this process."""
        return "127.0.0.1" if self.num_nodes == 1 else ray.util.get_node_ip_address()

    def _nodes(self) -> list[str]:
        return sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])

    def _node(self, place: int) -> str:
        nodes = self._nodes()
        return nodes[place % len(nodes)]

    async def start(
        self,
        factory: Any,
        *args: Any,
        name: str,
        num_gpus: float = 0.0,
        place: int | None = None,
        env: dict[str, str] | None = None,
        lost: type[Exception] = SystemFault,
    ) -> Any:
        """An actor that holds `factory(*args)`, as a proxy. `env` is set before its process imports anything.

        Actors of different `place` are put on different nodes where there are as many; without one Ray chooses.

        Nothing is retried by Ray: a restarted actor would hold the weights it was built with, not those it was given.
        """
        log_file = self._logs / f"{name}.log"
        actor = (
            ray.remote(Host)
            .options(
                # Where an actor that reserves nothing is put is left to chance by Ray, whatever the strategy says.
                num_cpus=0 if place is None else 0.001,
                num_gpus=num_gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=10_000,
                scheduling_strategy="DEFAULT" if place is None else NodeAffinitySchedulingStrategy(self._node(place), soft=True),
                runtime_env={"env_vars": env or {}},
            )
            .remote(str(log_file.resolve()))
        )
        proxy = Proxy(actor, name, lost, log_file)
        await proxy.build(factory, args)
        return proxy

    def shutdown(self) -> None:
        ray.shutdown()


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()

"""Ray, for a run: plain classes become actors, and proxies are awaited as the classes themselves would be.

Only this file, nodes.py and jobs.py import it: actors here, places and questions to nodes there, and how jobs are submitted.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grpo.nodes import Nodes
from grpo.placement import Seat
from grpo.watchdog import Watchdog
from sandbox.errors import SystemFault

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
LAST_LINES = 20
LAST_BYTES = 1 << 14
OBJECT_STORE_BYTES = 256 << 20


STACKS = signal.SIGUSR2
# What a run does when it calls a method of a part; other methods are phases of their own name.
PHASES = {
    "build": "start",
    "stream": "sample",
    "judge": "verify",
    "score": "update",
    "publish": "sync",
    "hold": "sync",
    "load": "sync",
    "lend": "sync",
    "sleep": "sync",
    "save": "checkpoint",
    "restore": "checkpoint",
    "export": "checkpoint",
}


class ClusterUnavailable(SystemFault):
    """No Ray cluster could be started or joined."""


@dataclass(frozen=True, slots=True)
class Shared:
    """An argument that was put into the object store once, for several calls."""

    reference: Any


class Proxy:
    """An actor, used like the object inside it: `await proxy.method(...)`.

    Errors of the object arrive as they were raised. When the actor's process has died the call raises `lost`. A cancelled call is
    cancelled in the actor too.
    """

    def __init__(self, actor: Any, name: str, lost: type[Exception], log_file: Path, watchdog: Watchdog) -> None:
        self._actor = actor
        self._name = name
        self._lost = lost
        self._log_file = log_file
        self._watchdog = watchdog
        self._process: tuple[str, int] | None = None  # node and pid, once it has told

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)

        async def call(*args: Any, **kwargs: Any) -> Any:
            with self._waiting(method, args):
                return await self._await(self._actor.call.remote(method, args, kwargs))

        return call

    def _waiting(self, method: str, args: tuple[Any, ...] = ()) -> AbstractContextManager[None]:
        """A deadline for a call. Whoever gave a loss an error of its own starts the part again."""
        task_id = getattr(args[0], "id", None) if args else None
        return self._watchdog.waiting(
            PHASES.get(method, method),
            part=self._name,
            about=f"task {task_id}" if task_id else "",
            restart=None if self._lost is SystemFault else lambda: ray.kill(self._actor),
        )

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        """The items of the object's own `stream(...)`, as they come. Closing this ends that."""
        references = self._actor.stream.options(num_returns="streaming").remote(args, kwargs)
        is_finished = False
        try:
            with self._waiting("stream", args):
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
        with self._waiting("build"):
            self._process = await self._await(self._actor.process.remote())
            await self._await(self._actor.build.remote(factory, args))

    def dump_stacks(self) -> list[tuple[Path, int]]:
        """Let its process append the stacks of its threads to its log, which is returned with its size before. Else nothing."""
        if self._process is None:
            return []
        node, pid = self._process
        size = self._log_file.stat().st_size if self._log_file.exists() else 0
        if node == ray.get_runtime_context().get_node_id():
            send_signal(pid)
        else:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            ray.remote(send_signal).options(num_cpus=0, scheduling_strategy=there).remote(pid)
        return [(self._log_file, size)]

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
        gc.disable()  # until it is built: imports make a million objects and no garbage, and to look through them takes seconds
        descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
        faulthandler.register(STACKS, all_threads=True)  # to stderr, which is the log
        self._object: Any = None

    async def process(self) -> tuple[str, int]:
        """The node it is on, and its pid there."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    async def build(self, factory: Any, args: tuple[Any, ...]) -> None:
        # Here and not in the constructor: an error raised there would reach the caller as the actor's death.
        try:
            self._object = await asyncio.to_thread(factory, *args)
        finally:
            gc.freeze()
            gc.enable()

    async def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args = tuple([await each.reference if isinstance(each, Shared) else each for each in args])
        return await getattr(self._object, method)(*args, **kwargs)

    async def stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncGenerator[Any]:
        async with aclosing(self._object.stream(*args, **kwargs)) as items:
            async for item in items:
                yield item


class Cluster:
    """A Ray cluster: one of our own on this machine (`address` "local"), or one that runs already ("auto": that of this job)."""

    def __init__(self, address: str, *, logs: Path, watchdog: Watchdog | None = None) -> None:
        self._logs = logs
        self._watchdog = watchdog or Watchdog()
        self._watchdog.dump_stacks = self._dump_stacks
        self._proxies: dict[str, Proxy] = {}
        self.nodes = Nodes()
        logs.mkdir(parents=True, exist_ok=True)
        local: dict[str, Any] = (
            {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False} if address == "local" else {}
        )
        if address == "auto":  # a job is told its cluster that way
            address = os.environ.get("RAY_ADDRESS", address)
        else:  # an inherited address would silently join a cluster that somebody else runs
            os.environ.pop("RAY_ADDRESS", None)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 leaves the run 3 % of a core that another program works on
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ClusterUnavailable(
                f"ray_address = {address!r}: no Ray cluster could be started or joined: {error}. "
                "Use local to start one for this run."
            ) from error

    @property
    def num_gpus(self) -> float:
        return self.nodes.resources().get("GPU", 0.0)

    @property
    def num_nodes(self) -> int:
        """Nodes that are alive."""
        return len(self.nodes.names())

    @property
    def host(self) -> str:
        """Where the actors reach this process."""
        return "127.0.0.1" if self.num_nodes == 1 else ray.util.get_node_ip_address()

    async def start(
        self,
        factory: Any,
        *args: Any,
        name: str,
        seat: Seat | None = None,
        env: dict[str, str] | None = None,
        lost: type[Exception] = SystemFault,
    ) -> Any:
        """An actor that holds `factory(*args)`, as a proxy. `env` is set before its process imports anything.

        It sits in its seat, which must have been set aside (`nodes.reserve`); without one Ray chooses a place, and it has no GPU.

        Nothing is retried by Ray: a restarted actor would hold the weights it was built with, not those it was given.
        """
        log_file = self._log_file(name)
        actor: Any = (
            ray.remote(Host)
            .options(
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=10_000,
                **({"num_cpus": 0} if seat is None else self.nodes.options(seat)),
                runtime_env={"env_vars": env or {}},
            )
            .remote(str(log_file.resolve()))
        )
        proxy = self._proxies[name] = Proxy(actor, name, lost, log_file, self._watchdog)
        try:
            await proxy.build(factory, args)
        except BaseException:
            ray.kill(actor)
            raise
        return proxy

    def last_words(self, name: str) -> str:
        """The last lines in the log of an actor; none where it cannot be read, as that of another machine."""
        try:
            with self._log_file(name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-LAST_LINES:])
        except OSError:
            return ""

    def _log_file(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _dump_stacks(self) -> list[tuple[Path, int]]:
        return [log for proxy in tuple(self._proxies.values()) for log in proxy.dump_stacks()]

    def share(self, value: Any) -> Shared:
        """The value as an argument for several actors."""
        return Shared(ray.put(value))

    def shutdown(self) -> None:
        ray.shutdown()


def send_signal(pid: int) -> None:
    """Ask a process of ours for its stacks, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, STACKS)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()

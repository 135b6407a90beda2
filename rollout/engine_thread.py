"""A thread that owns an inference engine: it obeys commands between steps, and steps while requests are unfinished.

What an engine computes in a step is not here: that is `hf_decoder.py`, and vLLM behind `vllm_inprocess.py`.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from rollout.errors import WorkerLost

GATHER_S = 0.001


class SteppedEngine(Protocol):
    """An engine that advances all its requests by one token per step."""

    def has_unfinished(self) -> bool: ...

    def step(self) -> Iterable[tuple[str, Any]]:
        """Advance by one token; the requests that ended, by id, each with its result or with an exception to raise."""
        ...

    def abort(self, request_id: str) -> None:
        """Forget a request, if it is still there."""
        ...

    def close(self) -> None: ...


E = TypeVar("E", bound=SteppedEngine)
T = TypeVar("T")


class EngineThread(Generic[E]):
    """Runs one engine in a thread of its own, so that neither the engine nor the event loop waits for the other.

    The constructor returns when `make()` has returned, and raises what it raised. An exception in a command goes to its caller; one
    in a step ends the thread, and every request and every later command gets WorkerLost.
    """

    def __init__(self, make: Callable[[], E], *, name: str) -> None:
        self._commands: queue.SimpleQueue[tuple[Callable[[E], Any], Future] | None] = queue.SimpleQueue()
        self._requests: dict[str, Future] = {}
        self._lock = threading.Lock()
        self.lost: WorkerLost | None = None
        started: Future[E] = Future()
        self._thread = threading.Thread(target=self._run, args=(make, started), name=name, daemon=True)
        self._thread.start()
        # For what never changes: anything else is asked through `call`.
        self.engine = started.result()

    async def call(self, command: Callable[[E], T]) -> T:
        """Run `command(engine)` between two steps and return what it returns."""
        return await asyncio.wrap_future(self._post(command))

    async def request(self, request_id: str, add: Callable[[E], object]) -> Any:
        """Add a request with `add(engine)` and wait for its result. When the waiting is cancelled, the request is aborted."""
        result = _uncancellable_future()
        with self._lock:
            self._requests[request_id] = result
        try:
            await self.call(add)
            return await asyncio.wrap_future(result)
        finally:
            with self._lock:
                self._requests.pop(request_id, None)
            if not result.done() and self.lost is None:
                self._post(lambda engine: engine.abort(request_id))

    def settle(self, request_id: str, result: Any) -> None:
        """End the waiting for a request, with a result or an exception. From the engine's thread only."""
        with self._lock:
            future = self._requests.pop(request_id, None)
        if future is None:
            return
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

    def stop(self) -> None:
        """End the thread after the current step and free the engine; what is unfinished gets WorkerLost. Waits for the thread."""
        self._commands.put(None)
        self._thread.join()

    def _post(self, command: Callable[[E], Any]) -> Future:
        future = _uncancellable_future()
        with self._lock:
            if self.lost is not None:
                raise self.lost
            self._commands.put((command, future))
        return future

    def _run(self, make: Callable[[], E], started: Future[E]) -> None:
        try:
            engine = make()
        except BaseException as error:  # the constructor raises it
            started.set_exception(error)
            return
        started.set_result(engine)
        lost = WorkerLost("the engine was closed.")
        try:
            while self._obey(engine):
                for request_id, result in engine.step():
                    self.settle(request_id, result)
        except BaseException as error:  # nobody can step this engine any more: tell everyone who waits
            lost = WorkerLost(f"the engine failed in a step: {type(error).__name__}: {error}. Replace the worker.")
            lost.__cause__ = error
        finally:
            self._give_up(lost)
            engine.close()

    def _obey(self, engine: E) -> bool:
        """Run the commands that wait. Returns true when there is something to step for, false when the thread shall end."""
        while True:
            is_idle = not engine.has_unfinished()
            try:
                item = self._commands.get() if is_idle else self._commands.get_nowait()
                while True:
                    if item is None:
                        return False
                    _run_command(engine, *item)
                    # What arrives together with the first request of many shall be in the first step too.
                    item = self._commands.get(timeout=GATHER_S) if is_idle else self._commands.get_nowait()
            except queue.Empty:
                if engine.has_unfinished():
                    return True

    def _give_up(self, lost: WorkerLost) -> None:
        with self._lock:
            self.lost = lost
            waiting = [*self._requests.values()]
            self._requests.clear()
            while not self._commands.empty():
                item = self._commands.get_nowait()
                if item is not None:
                    waiting.append(item[1])
        for future in waiting:
            future.set_exception(lost)


def _run_command(engine: E, command: Callable[[E], Any], future: Future) -> None:
    try:
        result = command(engine)
    except BaseException as error:  # it belongs to whoever awaits the command
        future.set_exception(error)
    else:
        future.set_result(result)


def _uncancellable_future() -> Future:
    """A future that a cancelled waiter leaves alone, so that the thread can always settle it."""
    future: Future = Future()
    future.set_running_or_notify_cancel()
    return future

"""A few worker processes that can be killed: for computations that may not end.

Each worker process belongs to one thread of ours, which starts it, speaks with it over pipes, watches the clock and kills it. No
event loop, signal or child watcher is involved, so a pool works in any thread of any process. `deadline_child.py` runs inside.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from verifiers.deadline_pipe import Clock, Overrun, WorkerLost, converse, frame, has_ended, kill_all

__all__ = ["InWorkers", "Overrun", "WorkerLost", "WorkerPool"]

logger = logging.getLogger(__name__)

CHILD = Path(__file__).with_name("deadline_child.py")


class WorkerPool:
    """Answers questions by a program's `answer(question)`, in at most `size` processes that start when they are first needed.

    `program` is the path of a Python file of ours; when `setup` is given, each process first calls its `setup(setup)`, as part of
    its start. A question has `deadline_s` from the moment a worker takes it up, by the worker's own processor time or, for programs
    that may wait for something, by the clock on the wall; waiting for a worker is not charged, nor is a worker's start, which has
    `start_s`. A worker that overruns, exceeds `memory_mb` of address space or dies is replaced, and its question asked once more of
    the fresh one; one that has grown beyond `recycle_mb` of resident memory is replaced between questions. The other workers
    notice nothing.
    """

    def __init__(
        self,
        program: Path,
        *,
        setup: Any = None,
        size: int = 2,
        deadline_s: float = 3.0,
        clock: Clock = "cpu",
        start_s: float = 120.0,
        memory_mb: int = 1024,
        recycle_mb: int = 512,
    ) -> None:
        assert size >= 1, "a pool has at least one worker"
        self.program, self.setup, self.size = program, frame(setup), size
        self.deadline_s, self.start_s = deadline_s, start_s
        self.clock: Clock = clock
        self.memory_mb, self.recycle_mb = memory_mb, recycle_mb
        self._waiting: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._is_closed = False
        self._counts = Counter(asked=0, killed=0)

    async def ask(self, question: Any) -> Any:
        """The program's answer. Raises Overrun or WorkerLost. Cancelling kills the worker that is at it, if any."""
        asked = _Question(frame(question))
        self._submit(asked)
        try:
            return await asyncio.wrap_future(asked.answer)
        except asyncio.CancelledError:
            asked.cancel()
            raise

    def ask_and_wait(self, question: Any) -> Any:
        """As `ask`, for a thread that may wait. Never on an event loop."""
        asked = _Question(frame(question))
        self._submit(asked)
        return asked.answer.result()

    def count_kill(self) -> None:
        with self._lock:
            self._counts["killed"] += 1

    def pids(self) -> list[int]:
        """The living worker processes."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def counters(self) -> dict[str, int]:
        """Questions asked, and worker processes killed or lost, since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter(asked=0, killed=0)
        return dict(counts)

    async def close(self) -> None:
        """Kill all workers and wait until they are gone. Questions still open get WorkerLost."""
        await asyncio.to_thread(self._close)

    def _submit(self, asked: _Question) -> None:
        with self._lock:
            if self._is_closed:
                raise WorkerLost("the pool of workers is closed.")
            self._counts["asked"] += 1
            self._waiting.put(asked)
            num_idle = sum(worker.is_idle for worker in self._workers)
            if self._waiting.qsize() > num_idle and len(self._workers) < self.size:
                self._workers.append(_Worker(self, self._waiting))

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
            workers = list(self._workers)
        for _ in workers:
            self._waiting.put(None)
        for worker in workers:
            worker.stop()
        while not self._waiting.empty():
            asked = self._waiting.get()
            if asked is not None and asked.answer.set_running_or_notify_cancel():
                asked.answer.set_exception(WorkerLost("the pool of workers was closed."))


class InWorkers:
    """A verifier whose checks run in one pool: what the service and the audit ask of it beside scores."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def counters(self) -> dict[str, int]:
        """What the workers have done since the last call."""
        return self._pool.counters()

    def pids(self) -> list[int]:
        """Its worker processes that live."""
        return self._pool.pids()

    async def close(self) -> None:
        await self._pool.close()


class _Question:
    """A question on its way: its frame, the future of its answer, and how to stop whoever is at it."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.answer: Future[Any] = Future()
        self.is_cancelled = False
        self.kill: Callable[[], None] | None = None

    def cancel(self) -> None:
        self.is_cancelled = True
        self.answer.cancel()
        if self.kill is not None:
            self.kill()


class _Worker:
    """One thread and the process it owns.

    The kernel's parent-death signal follows the *thread* that started the process, so the thread lives as long as the pool.
    """

    def __init__(self, pool: WorkerPool, waiting: queue.SimpleQueue[_Question | None]) -> None:
        self._pool, self._waiting = pool, waiting
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopping = False
        self.is_idle = True
        self._thread = threading.Thread(target=self._run, name="verifier-worker", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and not has_ended(process) else None

    def stop(self) -> None:
        self._is_stopping = True
        self._kill()
        self._thread.join()

    def _run(self) -> None:
        while (asked := self._next()) is not None:
            if asked.answer.cancelled() or not asked.answer.set_running_or_notify_cancel():
                continue
            asked.kill = self._kill
            answer, fault = None, None
            try:
                answer = self._answer(asked)
            except Exception as error:
                fault = error
            asked.kill = None
            # Idle before the asker can know, so that a question asked at once starts no further process.
            self.is_idle = True
            _settle(asked, answer, fault)
        self._reap()

    def _next(self) -> _Question | None:
        self.is_idle = True
        asked = self._waiting.get()
        self.is_idle = False
        return asked

    def _answer(self, asked: _Question) -> Any:
        """Ask, and ask once more of a fresh process after the first overrun, and after the first death."""
        seen: set[type[Exception]] = set()
        while True:
            try:
                return self._attempt(asked)
            except (Overrun, WorkerLost) as error:
                self._reap()
                self._pool.count_kill()
                if asked.is_cancelled or self._is_stopping:
                    raise WorkerLost("the check was cancelled.") from None
                if type(error) in seen:
                    raise
                seen.add(type(error))
                logger.debug("worker replaced: %s", error)

    def _attempt(self, asked: _Question) -> Any:
        process = self._started()
        if asked.is_cancelled or self._is_stopping:
            raise WorkerLost("the check was cancelled.")
        reply = converse(process, asked.frame, self._pool.deadline_s, clock=self._pool.clock)
        if "exhausted" in reply:
            raise Overrun(f"it exhausts {reply['exhausted']}")
        if reply["memory_mb"] > self._pool.recycle_mb:
            self._reap()
        if "fault" in reply:
            raise WorkerLost(reply["fault"])
        return reply["answer"]

    def _started(self) -> subprocess.Popen[bytes]:
        """The process, started if there is none."""
        if self._process is not None and not has_ended(self._process):
            return self._process
        self._reap()
        command = [sys.executable, "-I", str(CHILD), str(self._pool.program), str(self._pool.memory_mb), str(os.getpid())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            close_fds=True,
            start_new_session=True,
        )
        try:
            hello = converse(self._process, self._pool.setup, self._pool.start_s, clock="wall")
        except (Overrun, WorkerLost) as error:
            raise WorkerLost(f"a verifier worker did not start: {error}") from None
        if not hello["ready"]:
            raise WorkerLost(f"a verifier worker did not start: {hello['fault']}")
        return self._process

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            kill_all(process)

    def _reap(self) -> None:
        """End the process and leave no zombie and no pipe."""
        process, self._process = self._process, None
        if process is None:
            return
        kill_all(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    logger.debug("pipe of a dead worker", exc_info=True)
        process.wait()


def _settle(asked: _Question, answer: Any, error: Exception | None) -> None:
    if asked.answer.cancelled():
        return
    if error is not None:
        asked.answer.set_exception(error)
    else:
        asked.answer.set_result(answer)

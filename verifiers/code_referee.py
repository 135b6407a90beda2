"""Runs trusted tests against a function that lives elsewhere, in a few processes of ours that can be killed.

`code_referee_child.py` runs inside. It has never seen the program under test, and gets plain data from it through us.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sandbox.agent import calls
from sandbox.errors import SystemFault, UserError

CHILD = Path(__file__).with_name("code_referee_child.py")
START_S = 60.0
# Libraries that tests import need no threads, and a thread costs address space.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Ask = Callable[[str], Awaitable[str]]


@dataclass(frozen=True)
class TrustedTests:
    """Python sources of ours: `setup` is executed, then each of `tests`. They see `candidate`, also by `name`, and `cases`.

    They never see a NaN that the program answered, unless `nan` says that they know what to make of it: NaN passes every test that
    is written as `not a > b`.
    """

    setup: tuple[str, ...]
    tests: tuple[str, ...]
    name: str
    cases: tuple[Any, ...] = ()
    nan: bool = False


class Failure(NamedTuple):
    """Why one test failed: it was wrong, it let out what the program raised, or it exhausted memory or depth."""

    kind: Literal["wrong", "raised", "exhausted"]
    reason: str


class Refused(Exception):
    """The program answered what is no plain data, or NaN where it is not wanted, so the tests never saw it."""


class RefereeOverrun(Exception):
    """The tests took longer than they may. This is their own time; the program's is bounded by the sandbox."""


class BrokenTests(UserError):
    """The tests cannot be run, whatever the program: a mistake in the task."""


class RefereeLost(SystemFault):
    """A process of ours died or did not start."""


class Referee:
    """At most `size` processes that run tests, started when first needed. Belongs to the event loop that uses it.

    A run has `cpu_s` of CPU, `wall_s` on the clock while the program is not being asked, and `memory_mb` of address space. Take a
    place in a sandbox inside `ask` and never around a run: two that did one each would wait for each other.
    """

    def __init__(self, *, size: int, cpu_s: int = 10, wall_s: float = 60.0, memory_mb: int = 1024) -> None:
        self._cpu_s, self._wall_s, self._memory_mb = cpu_s, wall_s, memory_mb
        self._places = asyncio.Semaphore(size)
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._ids = itertools.count()

    async def run(self, tests: TrustedTests, ask: Ask, *, stop: bool) -> AsyncGenerator[Failure | None]:
        """A failure, or None, for each test when it is done; with `stop`, a failure is the last.

        Raises Refused, RefereeOverrun, BrokenTests, RefereeLost, and what `ask` raises, in place of the test that was under way.
        """
        sources = {"setup": tests.setup, "tests": tests.tests, "name": tests.name, "cases": calls.encode(list(tests.cases))}
        request = {"id": next(self._ids), "stop": stop, "nan": tests.nan} | sources
        async with self._places, self._process() as process:
            await process.send(request)
            while not self._is_end(frame := await process.receive(), request["id"]):
                if "result" in frame:
                    yield None if frame["result"] is None else Failure(*frame["result"])
                elif "ask" in frame:
                    await self._pass_on(process, frame["ask"], ask)

    @contextlib.asynccontextmanager
    async def _process(self) -> AsyncGenerator[_Process]:
        """A process that nobody else uses. It waits for the next request afterwards, unless this one was abandoned."""
        process = await self._ready()
        self._busy.add(process)
        try:
            yield process
        except _Stopped as stopped:
            self._idle.append(process)
            raise stopped.cause from None
        except BaseException:
            process.kill()
            raise
        else:
            self._idle.append(process)
        finally:
            self._busy.discard(process)

    def pids(self) -> list[int]:
        """The processes that run tests, and those that wait for some."""
        return [process.pid for process in (*self._busy, *self._idle)]

    async def close(self) -> None:
        """End all processes."""
        for process in (*self._busy, *self._idle):
            process.kill()
        self._idle.clear()

    async def _ready(self) -> _Process:
        while self._idle:
            process = self._idle.pop()
            if process.is_alive():
                process.left_s = self._wall_s
                return process
            process.kill()
        process = _Process(str(self._memory_mb), str(self._cpu_s), str(os.getpid()))
        process.left_s = START_S
        try:
            await process.receive()
        except (RefereeOverrun, RefereeLost) as error:
            process.kill()
            raise RefereeLost(f"a process for tests did not start: {error}") from None
        process.left_s = self._wall_s
        return process

    async def _pass_on(self, process: _Process, question: str, ask: Ask) -> None:
        """Ask the program. When that raises, the tests are told that there will be no answer."""
        try:
            answer = await ask(question)
        except Exception as error:
            await process.send({"stop": True})
            raise _Stopped(error) from None
        await process.send({"answer": answer})

    def _is_end(self, frame: dict[str, Any], request_id: int) -> bool:
        """Whether the request is done. Raises when it could not be; then, too, the process is ready for the next."""
        if frame.get("id", request_id) != request_id:
            return False  # the end of a fork that was done before
        if "refused" in frame:
            raise _Stopped(Refused(frame["refused"]))
        if "fault" in frame:
            raise _Stopped(BrokenTests(frame["fault"]))
        if "died" in frame:
            if frame["died"] in (-signal.SIGXCPU, -signal.SIGKILL):
                raise _Stopped(RefereeOverrun(f"the tests take more than {self._cpu_s} s of CPU"))
            raise _Stopped(RefereeLost(f"a process for tests died with exit status {frame['died']}"))
        return "done" in frame


class _Stopped(Exception):
    """The request is over, for this cause, and its process is free."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


class _Process:
    """The process and our end of its socket. `left_s` is how long we wait for frames from now on, all together."""

    def __init__(self, *arguments: str) -> None:
        self.left_s = 0.0
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(CHILD), *arguments],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=ENVIRONMENT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    async def send(self, frame: dict[str, Any]) -> None:
        body = json.dumps(frame).encode()
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, struct.pack(">I", len(body)) + body)
        except OSError as error:
            raise RefereeLost(f"a process for tests is gone: {error}") from None

    async def receive(self) -> dict[str, Any]:
        began = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, self.left_s)):
                (size,) = struct.unpack(">I", await self._read(4))
                return json.loads(await self._read(size))
        except TimeoutError:
            raise RefereeOverrun("the tests take more than their time on the clock") from None
        finally:
            self.left_s -= time.monotonic() - began

    async def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                chunk = await asyncio.get_running_loop().sock_recv(self._socket, min(size - len(data), 1 << 20))
            except OSError as error:
                raise RefereeLost(f"a process for tests is gone: {error}") from None
            if not chunk:
                raise RefereeLost("a process for tests is gone")
            data += chunk
        return bytes(data)

    def kill(self) -> None:
        """End it and what it forked, and leave no zombie."""
        if self._process.poll() is None:  # once it is reaped, its number may be another's; its fork dies with it
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._socket.close()

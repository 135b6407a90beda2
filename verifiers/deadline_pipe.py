"""One question and one answer over the pipes of a worker process, by a clock. Frames are four bytes of length, then JSON."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import time
from typing import Any, Literal

from sandbox.errors import SystemFault

MAX_ANSWER_BYTES = 16 * 2**20
# A worker that computes gets its time of the processor; one that has not got it after so many times as long was not let.
STARVED = 10

Clock = Literal["cpu", "wall"]


class Overrun(Exception):
    """The question took longer, or more memory, than it may: twice, the second time on a fresh worker."""


class WorkerLost(SystemFault):
    """A worker died, or could not start, through no fault of the question, twice."""


def frame(message: Any) -> bytes:
    """A message as it goes over the pipe."""
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


def converse(process: subprocess.Popen[bytes], question: bytes, deadline_s: float, *, clock: Clock) -> dict[str, Any]:
    """The answer to a question that is a frame.

    Raises Overrun when the clock runs out: seconds on the wall, or those that the processor spent on this process, which do not
    run while other work keeps it waiting. Raises WorkerLost when the process ends, or is kept waiting without end.
    """
    with _Conversation(process, deadline_s, clock) as conversation:
        conversation.write(question)
        (size,) = struct.unpack(">I", conversation.read(4))
        if size > MAX_ANSWER_BYTES:
            raise WorkerLost(f"a verifier worker sent {size} bytes")
        return json.loads(conversation.read(size))


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended. It is not reaped, so that its number stays its own until whatever it started is killed."""
    return process.returncode is not None or os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker that is not yet reaped, and whatever it started: it leads a process group of its own."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


class _Conversation:
    """The two pipes of a process, read and written until a deadline or until the process ends.

    The end is seen through the process itself: what it started may keep its pipes open.
    """

    def __init__(self, process: subprocess.Popen[bytes], deadline_s: float, clock: Clock) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._questions, self._answers = process.stdin.fileno(), process.stdout.fileno()
        self._deadline_s, self._clock = deadline_s, clock
        self._starts = time.monotonic()
        self._ends = self._starts + deadline_s
        self._cpu_starts = _cpu_s(process)

    def __enter__(self) -> _Conversation:
        os.set_blocking(self._questions, False)
        self._alive = os.pidfd_open(self._process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._alive)

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            self._wait_for(self._questions, select.POLLOUT)
            try:
                left = left[os.write(self._questions, left) :]
            except OSError as error:
                raise WorkerLost(f"a verifier worker died: {error}") from None

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait_for(self._answers, select.POLLIN)
            chunk = os.read(self._answers, size - len(data))
            if not chunk:
                self._mourn()
            data += chunk
        return bytes(data)

    def _wait_for(self, pipe: int, event: int) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        poll.register(self._alive, select.POLLIN)
        ready: list[tuple[int, int]] = []
        while not ready:
            ready = poll.poll(self._left_s() * 1000)
        if pipe not in dict(ready):
            self._mourn()

    def _left_s(self) -> float:
        """Until the deadline, or until it is worth looking at the processor's clock again."""
        left_s = self._ends - time.monotonic()
        if left_s > 0:
            return left_s
        missing_s = self._deadline_s - (_cpu_s(self._process) - self._cpu_starts) if self._clock == "cpu" else 0.0
        if missing_s <= 0:
            raise Overrun(f"it takes longer than {self._deadline_s:g} s")
        if time.monotonic() - self._starts > STARVED * self._deadline_s:
            raise WorkerLost(
                f"a verifier worker got less than {self._deadline_s:g} s of the processor in {STARVED * self._deadline_s:g} s: the "
                "machine is too busy. Give it less to do at a time, or more cores."
            )
        self._ends = time.monotonic() + max(missing_s, 0.01)
        return max(missing_s, 0.01)

    def _mourn(self) -> None:
        kill_all(self._process)
        raise WorkerLost(f"a verifier worker died with exit status {self._process.wait()}")


def _cpu_s(process: subprocess.Popen[bytes]) -> float:
    """Seconds that the processor has spent on a process, all its threads together; 0 when it has ended."""
    try:
        # The clock that clock_getcpuclockid(3) gives for a process id.
        return time.clock_gettime((~process.pid << 3) | 2)
    except OSError:
        return 0.0

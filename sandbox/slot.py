"""Our end of one fork server: a program goes in, its execution comes out, and whatever breaks in between is SandboxLost.

Where the server lives (a container, a jail) is the business of a Wire; docker.py and bubblewrap.py make them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import struct
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

from sandbox.errors import SandboxLost, SandboxUnavailable
from sandbox.types import MAX_SOURCE_BYTES, Ending, Execution, Limits, Program, ProgramEnded

MAX_FRAME = 64 << 20
GRACE_S = 10.0
START_S = 60.0


OUT_OF_MEMORY = {
    "execution": {"ending": "memory", "reason": "the slot's memory was used up", "stdout": "", "stderr": ""},
    "healthy": False,
}


class Wire(Protocol):
    """A byte stream to a fork server, and the means to end it."""

    name: str

    async def send(self, data: bytes) -> None:
        """Raises OSError when the other end is gone."""
        ...

    async def receive(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises EOFError when the other end is gone."""
        ...

    async def close(self) -> None:
        """End the server and everything in it; never raises, returns when it is gone or nothing more can be done."""
        ...

    def last_words(self) -> str:
        """The end of what the server wrote to its stderr."""
        ...

    async def ran_out_of_memory(self) -> bool:
        """Whether the kernel ended all of it, server and program, because its memory was used up."""
        ...


class Slot:
    """One fork server. Runs one program at a time; after SandboxLost, or when `is_spent`, only `close` is left."""

    def __init__(self, wire: Wire, *, max_jobs: int, max_age_s: float) -> None:
        self._wire = wire
        self._max_jobs, self._max_age_s = max_jobs, max_age_s
        self._started = time.monotonic()
        self._num_jobs = 0
        self._suspect: str | None = None

    @property
    def is_spent(self) -> bool:
        """Whether this slot must be replaced before the next program."""
        return self._suspect is not None or self._num_jobs >= self._max_jobs or time.monotonic() - self._started > self._max_age_s

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be asked of this slot any more."""
        return self._suspect is not None

    async def ping(self, *, timeout_s: float = START_S) -> dict[str, Any]:
        """What the server says of itself. Raises SandboxLost when it does not answer."""
        return (await self._exchange({"op": "ping"}, "pong", timeout_s))["pong"]

    async def run(self, program: Program, *, stdin: str, limits: Limits) -> Execution:
        """Raises SandboxLost when nothing is known of the program."""
        if (refused := _refused(program)) is not None:
            return refused
        request = _request(program, stdin=stdin, limits=limits, asked=False)
        return self._execution(await self._exchange(request, "execution", limits.wall_clock_s + GRACE_S))

    @contextlib.asynccontextmanager
    async def open(self, program: Program, *, limits: Limits) -> AsyncIterator[SlotSession]:
        """A program that answers questions; it is gone when the context ends."""
        session = SlotSession(self, program, limits)
        try:
            yield session
        finally:
            await session.end()

    async def close(self) -> None:
        self._suspect = self._suspect or "closed"
        await self._wire.close()

    def _execution(self, reply: dict[str, Any]) -> Execution:
        self._num_jobs += 1
        if not reply["healthy"]:
            self._suspect = "the fork server found something left behind"
        said = reply["execution"]
        output = {name: base64.b64decode(said[name]).decode("utf-8", "replace") for name in ("stdout", "stderr")}
        return Execution(**said | output | {"ending": Ending(said["ending"])})

    async def _exchange(self, request: dict[str, Any], wanted: str, timeout_s: float) -> dict[str, Any]:
        """Send a request under a new id and wait for its reply."""
        request = {"id": secrets.token_hex(16)} | request
        await self._send(request)
        return await self._reply(request["id"], (wanted,), timeout_s)

    async def _send(self, frame: dict[str, Any]) -> None:
        if self._suspect is not None:
            raise SandboxLost(f"{self._wire.name}: {self._suspect}")
        body = json.dumps(frame).encode()
        try:
            await self._wire.send(struct.pack(">I", len(body)) + body)
        except OSError as error:
            raise self._lost(f"it took no more requests ({error})") from None

    async def _reply(self, request_id: str, wanted: tuple[str, ...], timeout_s: float) -> dict[str, Any]:
        """The next frame, which must be the reply to `request_id`. Whatever else happens costs the slot."""
        try:
            async with asyncio.timeout(timeout_s):
                (length,) = struct.unpack(">I", await self._wire.receive(4))
                if length > MAX_FRAME:
                    raise self._lost(f"it announced a frame of {length} bytes")
                frame = json.loads(await self._wire.receive(length))
        except TimeoutError:
            raise self._lost(f"it did not answer within {timeout_s:g} s") from None
        except (EOFError, OSError) as error:
            lost = self._lost(f"it is gone ({error or type(error).__name__})")
            # A container that held one program only was used up by that program, whoever the kernel chose to end.
            if "execution" in wanted and self._max_jobs == 1 and await self._wire.ran_out_of_memory():
                return OUT_OF_MEMORY
            raise lost from None
        except ValueError as error:
            raise self._lost(f"its reply is no JSON ({error})") from None
        except asyncio.CancelledError:
            self._suspect = "a request was abandoned"
            raise
        if frame.get("id") != request_id:
            raise self._lost("it answered another request")
        if "fault" in frame:
            raise self._lost(f"it could not start the program: {frame['fault']}")
        if not any(key in frame for key in wanted):
            raise self._lost(f"its reply holds none of {', '.join(wanted)}")
        return frame

    def _lost(self, what: str) -> SandboxLost:
        self._suspect = what
        words = self._wire.last_words().strip()
        return SandboxLost(f"the sandbox {self._wire.name} was lost: {what}{f'; its last words: {words[-500:]}' if words else ''}")


class SlotSession:
    """A program with an entry point in a slot. Starts with the first question."""

    def __init__(self, slot: Slot, program: Program, limits: Limits) -> None:
        self._slot, self._program, self._limits = slot, program, limits
        self._id: str | None = None
        self._execution: Execution | None = None

    @property
    def execution(self) -> Execution | None:
        """What became of the program; None while it lives, was never started, or is lost."""
        return self._execution

    async def ask(self, question: str) -> str:
        """See `sandbox.protocol.Session.ask`."""
        if self._execution is not None:
            raise ProgramEnded(self._execution)
        if self._id is None:
            if (refused := _refused(self._program)) is not None:
                self._execution = refused
                raise ProgramEnded(refused)
            self._id = secrets.token_hex(16)
            await self._slot._send({"id": self._id} | _request(self._program, stdin="", limits=self._limits, asked=True))
        await self._slot._send({"id": self._id, "op": "ask", "question": question})
        reply = await self._slot._reply(self._id, ("answer", "execution"), self._limits.wall_clock_s + GRACE_S)
        if "answer" in reply:
            return reply["answer"]
        self._execution = self._slot._execution(reply)
        raise ProgramEnded(self._execution)

    async def end(self) -> None:
        """Nothing of the program is alive afterwards, or the slot is spent."""
        if self._id is None or self._execution is not None or self._slot.is_lost:
            return
        with contextlib.suppress(SandboxLost):
            await self._slot._send({"id": self._id, "op": "end"})
            self._execution = self._slot._execution(await self._slot._reply(self._id, ("execution",), GRACE_S))


def _refused(program: Program) -> Execution | None:
    size = len(program.source.encode("utf-8", "surrogatepass"))
    if size <= MAX_SOURCE_BYTES:
        return None
    reason = f"the program has {size:,} bytes; at most {MAX_SOURCE_BYTES:,} are run"
    return Execution(Ending.REFUSED, reason=reason)


def _request(program: Program, *, stdin: str, limits: Limits, asked: bool) -> dict[str, Any]:
    settings = {
        "source": program.source,
        "entry_point": program.entry_point,
        "files": {name: content.hex() for name, content in program.files.items()},
        **limits.model_dump(include={"cpu_s", "memory_mb", "max_processes", "disk_mb"}),
    }
    clocks = {"cpu_s": limits.cpu_s, "wall_s": limits.wall_clock_s, "output_bytes": limits.output_kb << 10}
    return {"op": "run", "program": json.dumps(settings), "stdin": stdin, "limits": clocks, "asked": asked}


async def start(wire: Wire, *, max_jobs: int, max_age_s: float) -> Slot:
    """A slot whose server has answered. Raises SandboxUnavailable with the server's own words when it does not."""
    slot = Slot(wire, max_jobs=max_jobs, max_age_s=max_age_s)
    try:
        pong = await slot.ping()
        if not pong["healthy"]:
            raise SandboxLost(f"the sandbox {wire.name} is not clean at its start")
    except BaseException as error:
        await wire.close()
        if isinstance(error, SandboxLost):
            raise SandboxUnavailable(f"a fork server did not start: {error}") from None
        raise
    return slot

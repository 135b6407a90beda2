"""What every level of the sandbox offers, and all that its callers need to know of it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from sandbox.types import Execution, Limits, Program


class Session(Protocol):
    """One program with an entry point, alive and waiting for questions."""

    async def ask(self, question: str) -> str:
        """The program's answer to one call. Both are one line of the text that `sandbox.agent.calls` defines.

        The answer is whatever the untrusted process wrote, at most 1 MiB, and may be no plain data at all. Raises ProgramEnded when
        the program ended instead of answering, SandboxLost when nothing is known about it.
        """
        ...


class Sandbox(Protocol):
    """Runs untrusted programs, several at a time, each as if it were alone in the world."""

    async def run(self, program: Program, *, stdin: str = "", limits: Limits = ...) -> Execution:
        """Run a script to its end. Raises SandboxUnavailable or SandboxLost, after retries, and nothing else."""
        ...

    def open(self, program: Program, *, limits: Limits = ...) -> AbstractAsyncContextManager[Session]:
        """A program with an entry point, to be asked; when the context ends, nothing of it is alive.

        The clock of the limits runs from the start, but wall time only while a question is open.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Counts and seconds since the last call."""
        ...

    async def close(self) -> None:
        """End everything; nothing is left behind."""
        ...

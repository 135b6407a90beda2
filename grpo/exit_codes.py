"""What the exit code of every command says: the one table of it."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended. `meaning` is the sentence about it in --help and in the docs."""

    DONE = 0
    FAULT = 1
    USER_ERROR = 2
    STOPPED = 130

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "done: what was asked for has happened",
    ExitCode.FAULT: "a fault of ours or of the machine; the message says what to look at",
    ExitCode.USER_ERROR: "a mistake in what was given: a config, a file, a command line; the message says how to mend it",
    ExitCode.STOPPED: "stopped on request; the same command, or `grpo resume`, goes on",
}


def table() -> str:
    """One line for each code, for --help."""
    return "\n".join(f"  {code.value:<5}{code.meaning}" for code in ExitCode)

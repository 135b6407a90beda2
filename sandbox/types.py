"""What goes into a sandbox and what comes out: a Program, its Limits, and the Execution. Plain data, no processes."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

from sandbox.errors import ProgramError

MAX_SOURCE_BYTES = 1 << 20
MAX_FILES_BYTES = 8 << 20


class Limits(BaseModel):
    """What one program may use, all its processes together where nothing else is said."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpu_s: float = Field(default=5.0, gt=0, le=3600, description="CPU seconds of all its processes; other load does not count.")
    wall_s: float | None = Field(
        default=None, gt=0, le=36000, description="Seconds on the clock while it has something to do. None: 5 * cpu_s + 1."
    )
    memory_mb: int = Field(
        default=256, ge=16, le=1 << 20, description="Memory of each process, in MiB; all together have the slot's."
    )
    max_processes: int = Field(default=32, ge=1, le=4096, description="Processes and threads at one time.")
    output_kb: int = Field(default=64, ge=1, le=4096, description="What is kept of each of stdout and stderr, in KiB.")
    disk_mb: int = Field(default=16, ge=1, le=4096, description="Size of its /tmp, and of its /dev/shm, in MiB of memory.")

    @property
    def wall_clock_s(self) -> float:
        """The limit on the wall clock, in seconds: it stands behind the CPU clock, for programs that sleep."""
        return 5 * self.cpu_s + 1 if self.wall_s is None else self.wall_s


@dataclass(frozen=True, slots=True)
class Program:
    """Untrusted Python source.

    Without an `entry_point` it is a script that reads stdin. With one, the source is executed and then answers questions, each a
    call of that function (`Session.ask`). `files` are put into its folder first, by relative name. A program is process 1 of a
    world of its own, so a signal that it sends to itself, and does not handle, does nothing.
    Raises ProgramError for a file name that is absolute or leaves the folder, or an entry point that is not a Python name.
    """

    source: str
    entry_point: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.files:
            path = PurePosixPath(name)
            if not name or "\0" in name or path.is_absolute() or ".." in path.parts or not path.parts:
                raise ProgramError(
                    f"a program's file is called {name!r}; its name must be relative and stay inside the folder. Use a name like "
                    "data/input.txt."
                )
        if (size := sum(map(len, self.files.values()))) > MAX_FILES_BYTES:
            raise ProgramError(f"a program's files have {size:,} bytes together; at most {MAX_FILES_BYTES:,} are taken.")
        names = [] if self.entry_point is None else self.entry_point.split(".")
        if not all(name.isidentifier() and not keyword.iskeyword(name) for name in names):
            raise ProgramError(f"the entry point {self.entry_point!r} is not the name of a function. Give one such as solve.")


class Ending(StrEnum):
    """How a program ended. Every ending is its own doing: what is ours is raised, as SandboxLost or SandboxUnavailable."""

    EXITED = "exited"  # by itself, with any exit code
    KILLED = "killed"  # by a signal of its own making, e.g. a segmentation fault
    CPU_TIME = "cpu_time"
    WALL_TIME = "wall_time"
    MEMORY = "memory"
    OUTPUT = "output"  # it went on writing far beyond what is kept
    PROTOCOL = "protocol"  # it wrote out of turn, or too much, where answers are expected
    REFUSED = "refused"  # never started: the source is larger than MAX_SOURCE_BYTES
    DISMISSED = "dismissed"  # the caller ended the session; the program was alive


@dataclass(frozen=True, slots=True)
class Execution:
    """What is known of one program after nothing of it is alive any more.

    `exit_code` is None unless it exited, `signal` None unless a signal ended it. `stdout` and `stderr` are the beginning of what it
    wrote (bytes that are no UTF-8 are replaced), cut where `*_truncated` says so. Times are in seconds.
    """

    ending: Ending
    exit_code: int | None = None
    signal: int | None = None
    stdout: str = ""
    stderr: str = ""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_memory_mb: float = 0.0
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return self.ending is Ending.EXITED and self.exit_code == 0


class ProgramEnded(Exception):
    """The program ended, or was ended, before it answered."""

    def __init__(self, execution: Execution) -> None:
        super().__init__(execution)
        self.execution = execution

"""What an attack is. There are three kinds: it tries what must be refused, it uses up what is limited, it leaves something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandbox.types import Ending, Limits

# The clock on the wall is for what waits: half a second of the processor may take seconds beside other tests.
LIMITS = Limits(cpu_s=0.5, wall_s=10.0, memory_mb=64, max_processes=16, output_kb=16, disk_mb=4)
# For what must not be ended by the clock of the processor, however slow its pages come on a busy machine.
UNHURRIED = LIMITS.model_copy(update={"cpu_s": 5.0})
# For what does nothing any more and is stopped by the clock on the wall: the rest of its time shows nothing new.
WAITS = LIMITS.model_copy(update={"wall_s": 3.0})
# However a program is stopped: by our clocks and counters, or by the kernel on our behalf.
STOPPED = frozenset({Ending.CPU_TIME, Ending.WALL_TIME, Ending.MEMORY, Ending.OUTPUT, Ending.KILLED})
ANY = STOPPED | {Ending.EXITED}
# The beginning of the name of everything that an attack tries to leave on the host.
MARK = "grpo-attack"


@dataclass(frozen=True, slots=True)
class Attack:
    """A hostile program, the endings it may have, and what it and the next program must print.

    `prints` None: anything. `next_program` runs in the same slot right after it; after that every attack is followed by the same
    look around. `not_claimed` names the levels that do not promise this, with the reason; `holes` those that promise and do not
    hold yet.
    """

    name: str
    program: str
    endings: frozenset[Ending]
    prints: str | None = None
    stdin: str = ""
    next_program: str = ""
    next_prints: str = ""
    limits: Limits = LIMITS
    not_claimed: Mapping[str, str] = field(default_factory=dict)
    holes: Mapping[str, str] = field(default_factory=dict)


PRELUDE = f"""
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, struct, sys, threading, time
MARK = {MARK!r}
succeeded = []
libc = ctypes.CDLL(None, use_errno=True)

def attempt(name, call, *args):
    try:
        result = call(*args)
    except (OSError, ValueError, OverflowError, AttributeError):
        return None
    succeeded.append(name)
    return result

def syscall(number, *args):
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def fork_until_refused(child, most=10_000):
    pids = []
    for _ in range(most):
        try:
            pid = os.fork()
        except OSError:
            break
        if pid == 0:
            try:
                child()
            finally:
                os._exit(0)
        pids.append(pid)
    return pids
"""


def tries(name: str, body: str, **more: Any) -> Attack:
    """The body calls `attempt(name, call, *args)`; none may succeed."""
    program = f"{PRELUDE}{body}\nprint(succeeded)\n"
    return Attack(name, program, frozenset({Ending.EXITED}), "[]\n", **({"limits": UNHURRIED} | more))


def uses_up(name: str, body: str, *endings: Ending, **more: Any) -> Attack:
    """The body takes without end; it is stopped, in one of these ways if any are given."""
    may_end = frozenset(endings) or STOPPED
    limits = LIMITS if Ending.CPU_TIME in may_end else UNHURRIED
    return Attack(name, PRELUDE + body, may_end, **({"limits": limits} | more))


def leaves(name: str, body: str, *, finds: str = "", **more: Any) -> Attack:
    """The body leaves something. The next program's `finds` appends to `found` what it sees of it: nothing."""
    next_program = f"{PRELUDE}found = []\n{finds}\nprint(found)\n" if finds else ""
    return Attack(name, PRELUDE + body, ANY, next_program=next_program, next_prints="[]\n" if finds else "", **more)

"""The watchdog of a run: whatever it waits for has a deadline, and when one passes a person learns what hung.

It lives in a thread, so that it sees a driver that hangs too. Clocks are monotonic: a clock that is set changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.errors import SystemFault

logger = logging.getLogger(__name__)

FIRST_TIME = 2  # how much longer the first of a kind may take: weights are read, kernels compiled, caches empty
LONGEST = 10  # times the longest so far is no hang, where that is more than the deadline
LOOK_EVERY_S = 1.0
SETTLE_S = 2.0  # for the other processes to write their stacks
GRACE_S = 120.0  # for the run to end by itself


class PhaseOverdue(SystemFault):
    """Something took longer than its deadline, and starting it again was no remedy."""


@dataclass(slots=True, eq=False)
class Wait:
    """Something waited for since `started`. `restart` ends the part that it is waited for; None where that would end the run."""

    phase: str
    part: str | None
    about: str
    started: float
    restart: Callable[[], None] | None = None
    is_given_up: bool = False

    @property
    def kind(self) -> tuple[str, bool]:
        return self.phase, self.part is None

    def __str__(self) -> str:
        return self.phase + (f" of {self.about}" if self.about else "") + (f" on {self.part}" if self.part else "")


class Watchdog:
    """Deadlines for calls to other processes, and for the loop's own phases, which consist of such calls and get twice as long.

    A call may take `deadline_s`, the first of its kind FIRST_TIME as long, and always LONGEST times the longest before it. Past
    that, stacks of all processes go to a file in `folder`; a part that can be restarted is, and the phases start to count anew;
    otherwise the run ends with PhaseOverdue. `tell(title, text)` reaches a person; `dump_stacks()` makes the other processes append
    their stacks to their logs, and returns those with their sizes before.
    """

    def __init__(
        self,
        *,
        deadline_s: float = math.inf,
        folder: Path = Path("stalls"),
        tell: Callable[[str, str], None] = lambda title, text: None,
        dump_stacks: Callable[[], list[tuple[Path, int]]] = list,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deadline_s = deadline_s
        self._folder = folder
        self.tell = tell
        self.dump_stacks = dump_stacks
        self._clock = clock
        self._lock = threading.Lock()
        self._waits: dict[int, Wait] = {}
        self._numbers = itertools.count()
        self._longest: dict[tuple[str, bool], float] = {}
        self._cause: PhaseOverdue | None = None
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[Any] | None = None

    @contextlib.contextmanager
    def waiting(
        self, phase: str, *, part: str | None = None, about: str = "", restart: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """What happens inside has a deadline."""
        number, wait = next(self._numbers), Wait(phase, part, about, self._clock(), restart)
        with self._lock:
            self._waits[number] = wait
        try:
            yield
        finally:
            with self._lock:
                del self._waits[number]
                if not wait.is_given_up:
                    self._longest[wait.kind] = max(self._longest.get(wait.kind, 0.0), self._clock() - wait.started)

    def limit_s(self, wait: Wait) -> float:
        longest = self._longest.get(wait.kind)
        limit = FIRST_TIME * self._deadline_s if longest is None else max(self._deadline_s, LONGEST * longest)
        return limit if wait.part is not None else 2 * limit

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Watch what happens inside. Raises PhaseOverdue in place of the cancellation that the watchdog asked for."""
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        watching = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        watching.start()
        try:
            yield
        except asyncio.CancelledError:
            if self._cause is None:
                raise
            if self._main is not None:
                self._main.uncancel()
            raise self._cause from None
        finally:
            self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_EVERY_S):
            self.check()
            if self._cause is not None:
                if not self._stopped.wait(GRACE_S):
                    self.tell("the run does not end", f"{self._cause} The process is ended, {GRACE_S:g} s after it was asked to.")
                    os._exit(1)
                return

    def check(self) -> None:
        """Look for what is overdue: calls first, they are what a phase waits for."""
        with self._lock:
            waits = sorted(self._waits.values(), key=lambda wait: (wait.part is None, wait.started))
        for wait in waits:
            now = self._clock()
            if self._cause is None and not wait.is_given_up and now - wait.started > self.limit_s(wait):
                self._handle(wait, waits)

    def _handle(self, wait: Wait, waits: list[Wait]) -> None:
        now = self._clock()
        facts = f"{wait} has taken {now - wait.started:.0f} s and may take {self.limit_s(wait):.0f} s"
        wait.is_given_up = True
        stacks = self._write_stacks(wait, facts, waits)
        where = f"The stacks of all processes are in {stacks}." if stacks else "Their stacks could not be written."
        if wait.restart is not None:
            self.tell(f"{wait.part} is restarted", f"{facts}: {wait.part} is restarted. {where}")
            with self._lock:
                for other in self._waits.values():
                    if other.part is None:
                        other.started = now
            self._call(wait.restart)
            return
        oldest = next((str(each) for each in waits if each.part is not None and each is not wait), "")
        under_way = f" It waits for: {oldest}." if oldest else ""
        self._cause = PhaseOverdue(
            f"{facts}.{under_way} {where} Resume the run with the same command; raise deadline_s if it was only slow."
        )
        self.tell("the run ends", str(self._cause))
        if self._main is not None:
            self._call(self._main.cancel)

    def _call(self, action: Callable[[], object]) -> None:
        """On the loop's thread, where there is one."""
        if self._loop is None:
            action()
        else:
            self._loop.call_soon_threadsafe(action)

    def _write_stacks(self, wait: Wait, facts: str, waits: list[Wait]) -> Path | None:
        """One file with what is waited for, and the stacks of this process and of the others. None where it cannot be written."""
        now = self._clock()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{len(list(self._folder.iterdir())) + 1:03d}-{wait.phase}.txt"
            with path.open("w") as file:
                file.write(f"{facts}\n\nunder way:\n")
                file.writelines(f"{now - each.started:9.1f} s  {each}\n" for each in waits)
                file.write("\n== driver\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                for task in asyncio.all_tasks(self._loop) if self._loop is not None else ():
                    task.print_stack(file=file)
                logs = self.dump_stacks()
                time.sleep(SETTLE_S if logs else 0)
                for log, size in logs:
                    file.write(f"\n== {log.stem}\n{written_since(log, size)}")
        except (OSError, RuntimeError) as error:  # a full disk, a cluster that is gone
            logger.warning("the stacks could not be written: %s", error)
            return None
        return path


def written_since(log: Path, size: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(size)
            return file.read().decode(errors="replace")
    except OSError:
        return "its log cannot be read here\n"


class Watched:
    """A part whose named methods are phases of the watchdog: `Watched(source, watchdog, take="sample")`."""

    def __init__(self, part: Any, watchdog: Watchdog, **phases: str) -> None:
        self._part = part
        self._watchdog = watchdog
        self._phases = phases

    def __getattr__(self, name: str) -> Any:
        method, phase = getattr(self._part, name), self._phases.get(name)
        if phase is None:
            return method

        async def watched(*args: Any, **kwargs: Any) -> Any:
            with self._watchdog.waiting(phase):
                return await method(*args, **kwargs)

        return watched

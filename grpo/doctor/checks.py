"""`grpo doctor`: what this machine has for training, what it lacks, and what to type; quick, whatever hangs.

Each check runs in a thread of its own with a deadline. What is checked is in doctor/machine.py and doctor/network.py, and for a
config in doctor/config.py.
"""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from sandbox.errors import SystemFault, UserError

DEADLINE_S = 4.0

Status = Literal["works", "limited", "missing"]
MARKS: dict[Status, str] = {"works": "[green]works  [/]", "limited": "[yellow]limited[/]", "missing": "[red]missing[/]"}
NAME_WIDTH = 25


class Finding(NamedTuple):
    """One thing about this machine. `missing` keeps from training, `limited` from something more; `advice` says what to type."""

    name: str
    found: str
    status: Status = "works"
    advice: str = ""


Check = Callable[[], Iterable[Finding]]


def examine(checks: Mapping[str, Check], *, deadline_s: float = DEADLINE_S) -> Iterator[Finding]:
    """The findings of all checks, in order. One that is not done within the deadline is a finding itself, and is left behind."""
    end = time.monotonic() + deadline_s
    answers = {name: _started(name, check) for name, check in checks.items()}
    for name, answer in answers.items():
        try:
            yield from answer.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            advice = "something hangs: a network drive, a daemon or a driver. Try again, and look at it by itself"
            yield Finding(name, f"no answer within {deadline_s:g} s", "limited", advice)


def _started(name: str, check: Check) -> queue.SimpleQueue[list[Finding]]:
    answer: queue.SimpleQueue[list[Finding]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put(list(check()))
        except (UserError, SystemFault) as error:
            answer.put([Finding(name, "does not work", "missing", str(error))])
        except (OSError, ValueError, subprocess.SubprocessError) as error:  # a damaged file, no address, a tool that hangs
            answer.put([Finding(name, "could not be looked at", "limited", f"{type(error).__name__}: {error}")])

    threading.Thread(target=run, name=f"doctor-{name}", daemon=True).start()
    return answer


def told(finding: Finding) -> str:
    """A line with what was found, in rich's markup, and one with what to do: unbroken, to be copied."""
    from rich.markup import escape

    line = f"{MARKS[finding.status]}  {finding.name:<{NAME_WIDTH}}{escape(finding.found)}"
    return f"{line}\n{'':{NAME_WIDTH + 9}}{escape(finding.advice)}" if finding.advice else line


def conclusion(findings: Iterable[Finding], what: str) -> str:
    """One sentence: whether it could run, and what keeps it from that."""
    lacking = [finding.name for finding in findings if finding.status == "missing"]
    return f"{what} cannot run here: {', '.join(lacking)}." if lacking else f"{what} can run here."

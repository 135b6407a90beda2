"""What the server sees beside the job: processes, descriptors, and the counters of CPU time and memory."""

from __future__ import annotations

import contextlib
import os

from sandbox.agent import walls

PAGE_KB = os.sysconf("SC_PAGE_SIZE") >> 10


class Surroundings:
    """What is in this slot beside the job: its processes, its descriptors, its counters.

    `counters`: the container's own counters are the job's. Without, CPU time is summed over the processes that are seen; on a
    machine that is not ours alone not even that, and the job's own limit on CPU time stands alone.
    """

    def __init__(self, template_pid: int, *, isolation: str, counters: bool, memory_mb: int) -> None:
        self._is_ours = isolation != walls.NONE
        # Where the kernel does not hold all processes together to a limit, we look.
        self.is_watched = self._is_ours and not counters
        self._memory_kb = memory_mb << 10
        self._trusted = {1, os.getpid(), template_pid}
        self._cpu = _first_readable("/sys/fs/cgroup/cpuacct/cpuacct.usage", "/sys/fs/cgroup/cpu.stat") if counters else None
        self._oom = (
            _first_readable("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events") if counters else None
        )
        self._num_descriptors = len(os.listdir("/proc/self/fd"))

    @property
    def cpu_is_exact(self) -> bool:
        """Whether `cpu_s` includes processes that have ended."""
        return self._cpu is not None

    def cpu_s(self) -> float:
        """CPU seconds used here so far."""
        if self._cpu is None:
            return self._cpu_of_others() if self._is_ours else 0.0
        text = _read(self._cpu)
        return int(text) / 1e9 if self._cpu.endswith("usage") else int(text.split()[1]) / 1e6  # nanoseconds; usage_usec

    def oom_kills(self) -> int:
        """How often the kernel has ended a process here because the container's memory was used up."""
        if self._oom is None:
            return 0
        words = _read(self._oom).split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    def memory_is_used_up(self) -> bool:
        """Whether the job's processes together have more than the slot's memory. Pages they share are counted once."""
        strangers = set(_processes()) - self._trusted
        resident = sum(map(_resident_kb, strangers))
        if resident <= self._memory_kb:
            return False
        proportional = [_proportional_kb(pid) for pid in strangers]
        known = [kb for kb in proportional if kb is not None]
        return sum(known) > self._memory_kb if known else True

    def are_clean(self) -> bool:
        """Whether nothing is left of any job: no process but ours, no descriptor."""
        strangers = set(_processes()) - self._trusted if self._is_ours else set()
        return not strangers and len(os.listdir("/proc/self/fd")) == self._num_descriptors

    def _cpu_of_others(self) -> float:
        ticks = 0
        for pid in set(_processes()) - self._trusted:
            with contextlib.suppress(OSError, ValueError):
                fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))  # its own, and of the children it reaped
        return ticks / os.sysconf("SC_CLK_TCK")


def _resident_kb(pid: int) -> int:
    """0 when the process is gone. From a file of numbers alone: /proc/PID/status begins with a name of the program's choice."""
    try:
        return int(_read(f"/proc/{pid}/statm").split()[1]) * PAGE_KB
    except OSError:
        return 0


def _proportional_kb(pid: int) -> int | None:
    """Resident memory, with pages shared by n processes counted as 1/n. None when the kernel does not say."""
    try:
        lines = _read(f"/proc/{pid}/smaps_rollup").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), None)


def _first_readable(*paths: str) -> str | None:
    return next((path for path in paths if os.access(path, os.R_OK)), None)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]

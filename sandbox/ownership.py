"""Who owns a container: enough of a process to tell, later and from elsewhere, whether it is still the same one and alive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

LABEL_OWNER, LABEL_CREATED = "grpo.owner", "grpo.created"


class Owner(NamedTuple):
    """A process: this boot of the kernel, its namespace of process ids, its id there, and when it started (clock ticks after boot).

    An id alone is not enough: ids are used again.
    """

    boot_id: str
    pid_namespace: str
    pid: int
    start_ticks: int

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        return cls(_boot_id(), _pid_namespace(), os.getpid(), _start_ticks(os.getpid()) or 0)

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """What `str` wrote, or None for anything else."""
        parts = text.split(":")
        if len(parts) != 4 or not (parts[2].isdigit() and parts[3].isdigit()):
            return None
        return cls(parts[0], parts[1], int(parts[2]), int(parts[3]))

    def __str__(self) -> str:
        return ":".join(map(str, self))

    def is_dead(self) -> bool | None:
        """None when it cannot be known from here: another machine's kernel, or a namespace whose processes we do not see."""
        if self.boot_id != _boot_id():
            return None
        if self.pid_namespace != _pid_namespace():
            return None
        return _start_ticks(self.pid) != self.start_ticks


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid").strip("pid:[]")


def _start_ticks(pid: int) -> int | None:
    """None when there is no such process, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])

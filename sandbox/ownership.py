"""Who owns a container or a folder: enough of a process to tell later, and from elsewhere, whether it is the same one and alive."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
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


def owned_folder(prefix: str) -> Path:
    """A new temporary folder whose name says, in few letters, that this process owns it."""
    owner = Owner.current()
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{_where(owner)}-{owner.pid}-{owner.start_ticks}-"))


def sweep_folders(prefix: str) -> list[Path]:
    """Remove those of this prefix, and of this user, whose owner is dead, and return them: an owner that was killed could not."""
    here, swept = Owner.current(), []
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        match = re.fullmatch(r"([0-9a-f]{8})-(\d+)-(\d+)-\w+", folder.name.removeprefix(prefix))
        if match is None or match[1] != _where(here):
            continue
        owner = here._replace(pid=int(match[2]), start_ticks=int(match[3]))
        with contextlib.suppress(FileNotFoundError):  # someone else swept it
            if owner.is_dead() and folder.stat().st_uid == os.geteuid():
                shutil.rmtree(folder, ignore_errors=True)
                swept.append(folder)
    return swept


def _where(owner: Owner) -> str:
    """A digest of what must be the same for a process id to mean the same."""
    return hashlib.blake2b(f"{owner.boot_id} {owner.pid_namespace}".encode(), digest_size=4).hexdigest()


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

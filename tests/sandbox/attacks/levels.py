"""A level under attack: one slot of it, what a program in a clean slot sees, and what the host shows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import psutil

from sandbox.agent.calls import encode_call
from sandbox.config import Level, SandboxConfig
from sandbox.docker import connect
from sandbox.ownership import LABEL_OWNER, Owner
from sandbox.pool import open_sandbox
from sandbox.types import Execution, Limits, Program, ProgramEnded
from tests.sandbox.attacks.attack import LIMITS, MARK

T = TypeVar("T")
# What a program sees of the world it was put into: everything that another one could have changed.
LOOK_AROUND = """
import json, os, resource, signal, socket, stat, sys, threading

def tree(folder):
    try:
        return sorted(os.path.join(root, name) for root, folders, files in os.walk(folder) for name in folders + files)
    except OSError as error:
        return repr(error)

def status(pid):
    wanted = ("Name", "Uid", "Gid", "Groups", "NSpid", "Threads", "SigBlk", "SigIgn", "SigCgt", "CapEff", "CapBnd", "NoNewPrivs",
        "Seccomp", "Seccomp_filters")
    try:
        lines = open(f"/proc/{pid}/status").read().splitlines()
    except OSError as error:
        return type(error).__name__
    return [line for line in lines if line.split(":")[0] in wanted]

def descriptor(number):
    try:
        mode = os.fstat(number).st_mode
        return [number, stat.S_IFMT(mode), os.get_blocking(number)]
    except OSError:
        return None

def free(folder):
    try:
        room = os.statvfs(folder)
        return [room.f_bsize, room.f_blocks, room.f_bfree, room.f_files, room.f_ffree]
    except OSError as error:
        return repr(error)

def listing(folder):
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        return type(error).__name__

pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
print(json.dumps({
    "files": {folder: tree(folder) for folder in ("/tmp", "/dev/shm", "/dev/mqueue", "/dev/pts")},
    "room": {folder: free(folder) for folder in ("/tmp", "/dev/shm")},
    "root": {folder: listing(folder) for folder in ("/", "/dev", "/sys", "/etc", "/opt/grpo", "/run", "/var/tmp")},
    "processes": {pid: status(pid) for pid in pids},
    "me": [os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0)],
    "user": [os.getresuid(), os.getresgid(), os.getgroups()],
    "descriptors": [d for d in map(descriptor, range(1024)) if d],
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "umask": os.umask(0),
    "nice": os.nice(0),
    "cores": sorted(os.sched_getaffinity(0)),
    "limits": [resource.getrlimit(kind) for kind in (0, 1, 3, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15)],  # not of its own size, nor core
    "host": os.uname().nodename,
    "handlers": [repr(signal.getsignal(number)) for number in range(1, 65) if number not in (32, 33)],
    "blocked": len(signal.pthread_sigmask(0, [])),
    "timers": [signal.getitimer(kind) for kind in range(3)],
    "threads": threading.active_count(),
    "path": sys.path,
    "modules": sorted(sys.modules),
    "mounts": [line.split(" - ")[0].split()[4:6] for line in open("/proc/self/mountinfo")],
    "builtins": sorted(vars(__import__("builtins"))),
    "names": listing("/proc"),
}))
"""
LOOK_LIMITS = LIMITS.model_copy(update={"cpu_s": 2.0, "wall_s": 20.0, "output_kb": 256})
FOLDERS = ("/", "/tmp", "/dev/shm", "/var/tmp", "/run", "/root", "/dev", "/etc", "/usr", "/usr/lib", "/opt")


class LevelUnderAttack:
    """One slot of a level, on an event loop of its own, and the looks from inside and outside before anything happened to it."""

    def __init__(self, level: Level, image: str | None) -> None:
        self.level = level
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._config = SandboxConfig(level=level, slots=1, memory_mb=192, image=image)
        self._client = None if level == "bubblewrap" else connect()
        # What an attack must not reach; abstract, so that no file system stands in between.
        self._listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):  # another run on this machine has it
            self._listener.bind("\0grpo-attack-host")
            self._listener.listen()
        self._others = {child.pid for child in psutil.Process().children()}  # what other tests of this run left running
        self.sandbox = open_sandbox(self._config, patience_s=0.0)
        self.clean = self.look_around()
        self._host = host_state()
        self._children = self.own_processes()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=110)

    def run(self, source: str, limits: Limits, stdin: str = "") -> Execution:
        return self.do(self.sandbox.run(Program(source), stdin=stdin, limits=limits))

    def ask(self, source: str, limits: Limits, *, times: int, pause_s: float) -> tuple[list[str], Execution | None]:
        """The answers of `f`, and the execution when it ended before it was dismissed. After each answer is time for what was not
        asked for."""
        return self.do(self._ask(Program(source, entry_point="f"), limits, times, pause_s))

    async def _ask(self, program: Program, limits: Limits, times: int, pause_s: float) -> tuple[list[str], Execution | None]:
        answers: list[str] = []
        try:
            async with self.sandbox.open(program, limits=limits) as session:
                for _ in range(times):
                    answers.append(await session.ask(encode_call((), {})))
                    await asyncio.sleep(pause_s)
        except ProgramEnded as ended:
            return answers, ended.execution
        return answers, None

    def look_around(self) -> dict[str, Any]:
        import json

        seen = self.run(LOOK_AROUND, LOOK_LIMITS)
        assert seen.ok, seen
        return json.loads(seen.stdout)

    def own_processes(self) -> int:
        """How many processes stand for an idle slot, once a replacement that is under way has happened."""
        self.do(self._settled())
        if self._client is None:
            return len(psutil.Process().children(recursive=True))
        containers = self._client.api.containers(filters={"label": f"{LABEL_OWNER}={Owner.current()}"})
        return sum(len(self._client.api.top(container["Id"])["Processes"]) for container in containers)

    async def _settled(self) -> None:
        while self.sandbox._tasks:  # type: ignore[attr-defined]
            await asyncio.sleep(0.02)

    @property
    def slots_are_shared(self) -> bool:
        """Whether the next program comes into the container or jail that this one had."""
        return self.level in ("warm", "bubblewrap")

    def differences(self, *, inside: bool) -> dict[str, Any]:
        """What differs from before, outside and, if wanted, inside; empty when nothing was left."""
        seen = self.look_around() if inside else {}
        found = {key: (self.clean[key], seen[key]) for key in seen if seen[key] != self.clean[key]}
        now = host_state()
        found |= {key: (self._host[key], now[key]) for key in now if now[key] != self._host[key]}
        if (processes := self._waited_for_processes()) != self._children:
            found["processes of the slot"] = (self._children, processes)
        return found

    def _waited_for_processes(self) -> int:
        """A container that was thrown away takes a moment to go."""
        deadline = time.monotonic() + 10
        while (count := self.own_processes()) != self._children and time.monotonic() < deadline:
            time.sleep(0.1)
        return count

    def close(self) -> int:
        """How many processes and containers are left."""
        self.do(self.sandbox.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._listener.close()
        if self._client is None:
            return len({child.pid for child in psutil.Process().children()} - self._others)
        left = self._client.api.containers(all=True, filters={"label": f"{LABEL_OWNER}={Owner.current()}"})
        self._client.close()
        return len(left)


def host_state() -> dict[str, Any]:
    """What an attack could change on the host, and nothing that changes by itself."""
    me = psutil.Process()
    return {
        "files of the host": sorted(f"{folder}/{name}" for folder in FOLDERS for name in names_in(folder) if name.startswith(MARK)),
        "sockets of the host": [
            line for line in Path("/proc/net/unix").read_text().splitlines() if f"@{MARK}" in line and "host" not in line
        ],
        "shared memory of the host": [Path(f"/proc/sysvipc/{kind}").read_text() for kind in ("shm", "sem", "msg")],
        "name of the host": socket.gethostname(),
        "modules of the host": [line.split()[0] for line in Path("/proc/modules").open()]
        if os.path.exists("/proc/modules")
        else [],
        "clock of the host": abs(time.time() - time.monotonic() - BOOTED) < 5,
        "this process": [me.nice(), Path("/proc/self/oom_score_adj").read_text(), me.cwd()],
    }


def names_in(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


BOOTED = time.time() - time.monotonic()
